"""Prints what an extra of pyproject.toml needs, one requirement a line: `python list_requirements.py router s3`.

Images install this list before the sources are copied, so that a change of the code does not install torch again.
Extras of ours inside an extra are replaced by what they need.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

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


def main() -> None:
    """Reads the pyproject.toml of the current folder."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    print("\n".join(requirements_of(sys.argv[1:], project)))


if __name__ == "__main__":
    main()
