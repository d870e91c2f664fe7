"""docs/security.md promises a test for each risk: here it is looked for."""

from __future__ import annotations

import ast
import re

import pytest

from tests.builders.system import ROOT

_TEXT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
_REFERENCE = re.compile(r"`((?:tests/[\w/.]+\.py)?(?:::\w+)*)`")


def rows():
    """`(place, cells)` of each row of a table with a column of tests."""
    found = []
    header = None
    for number, line in enumerate(_TEXT.splitlines(), start=1):
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            header = None
        elif header is None:
            header = cells
        elif header[-1] == "test" and not set(line) <= set("|-"):
            found.append((number, cells))
    return found


def references(cell):
    """Full references of a cell; one that begins with `::` is in the file before it."""
    found = []
    for text in re.findall(r"`([^`]+)`", cell):
        if not _REFERENCE.fullmatch(f"`{text}`"):
            continue
        file, _, rest = text.partition("::")
        file = file or found[-1][0]
        found.append((file, tuple(rest.split("::")) if rest else ()))
    return found


def has_name(file, names):
    """Whether a file of tests has a class, a function, or a method of a class."""
    scope = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    for name in names:
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        scope = next((node for node in scope.body if isinstance(node, kinds) and node.name == name), None)
        if scope is None:
            return False
    return True


def test_there_are_risks():
    assert len(rows()) > 40


@pytest.mark.parametrize(
    ("number", "cells"), rows(), ids=lambda value: value[0][:60] if isinstance(value, list) else ""
)
def test_each_risk_has_a_control_and_tests_that_exist(number, cells):
    assert len(cells) == 3, f"line {number}"
    assert all(cells), f"line {number}"
    found = references(cells[-1])
    assert found, f"line {number} names no test"
    for file, names in found:
        assert (ROOT / file).is_file(), f"line {number}: {file}"
        assert has_name(file, names), f"line {number}: {file}::{'::'.join(names)}"


def test_every_link_and_path_leads_somewhere():
    paths = re.findall(r"`((?:services|deploy|hilora|docs)/[\w/.-]+)`", _TEXT) + [
        f"docs/{link}" for link in re.findall(r"\]\(([\w/.-]+\.md)\)", _TEXT)
    ]
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_settings_exist():
    known = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert [name for name in re.findall(r"`(HILORA_[A-Z_]+)`", _TEXT) if f"`{name}`" not in known] == []


@pytest.mark.parametrize("names", [("TestNothing",), ("TestCalls", "test_nothing")])
def test_what_does_not_exist_is_noticed(names):
    assert not has_name("tests/integration/common/test_tls.py", names)
    assert has_name("tests/integration/common/test_tls.py", ("TestCalls", "test_probes_have_a_port_of_their_own"))
