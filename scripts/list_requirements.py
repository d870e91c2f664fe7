"""Prints what an extra of pyproject.toml needs, one requirement a line: `python list_requirements.py router s3`.

Images install this list before the sources are copied, so that a change of the code does not install torch again.
Extras of ours inside an extra are replaced by what they need; what follows `--without` is left out by name.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_NAME = re.compile(r"[A-Za-z0-9._-]+")
_SELF = re.compile(r"^hilora-serve\[(?P<extras>[^]]+)\]$")


def requirements_of(extras: list[str], project: dict[str, Any]) -> list[str]:
    """The requirements of the package itself and of these extras, each once, in order.

    Args:
        extras: names under `[project.optional-dependencies]`.
        project: the table `[project]`.

    Raises:
        KeyError: there is no such extra.
    """
    found: dict[str, None] = dict.fromkeys(project["dependencies"])
    waiting = list(extras)
    while waiting:
        for requirement in project["optional-dependencies"][waiting.pop(0)]:
            own = _SELF.match(requirement)
            if own:
                waiting += [extra.strip() for extra in own["extras"].split(",")]
            else:
                found[requirement] = None
    return list(found)


def without(names: Sequence[str], requirements: Sequence[str]) -> list[str]:
    """The requirements of other packages than these.

    Raises:
        KeyError: one of them is not required: whoever leaves it out believes otherwise.
    """
    named = {match[0].lower(): requirement for requirement in requirements if (match := _NAME.match(requirement))}
    left_out = {named[name] for name in names}
    return [requirement for requirement in requirements if requirement not in left_out]


def main() -> None:
    """Reads the pyproject.toml of the current folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("extras", nargs="+")
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME")
    arguments = parser.parse_args()
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    print("\n".join(without(arguments.without, requirements_of(arguments.extras, project))))


if __name__ == "__main__":
    main()
