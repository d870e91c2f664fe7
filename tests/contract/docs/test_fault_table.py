"""The table of faults in docs/operations.md and the tests that it names are the same things."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
HEADING = "## What breaks, and what happens then"
NUM_WHOLE_FILES = 2
"""Rows whose proof is a whole file."""


def rows():
    """The cells of each line of the table."""
    section = (ROOT / "docs" / "operations.md").read_text().split(HEADING)[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def names_of(cell):
    """What a row's last cell names: file, and class and function if it names them."""
    found = re.fullmatch(r"`([^`]+)`", cell)
    assert found, f"not one test: {cell}"
    path, *inner = found[1].split("::")
    return (ROOT / path if path.startswith("tests/") else ROOT / "tests" / "e2e" / path), inner


def collected_from(path):
    """`[class, function]` or `[function]` of each test in a file."""
    found = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            found += [[node.name, inner.name] for inner in node.body if _is_test(inner)]
        elif _is_test(node):
            found.append([node.name])
    return found


def _is_test(node):
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_a_line_says_what_happens_and_its_test_exists(row):
    fault, behaviour, cell = row
    assert fault
    assert behaviour
    path, inner = names_of(cell)
    assert path.is_file()
    assert not inner or inner in collected_from(path)


def test_every_test_of_a_fault_has_its_line():
    named = [names_of(row[2]) for row in rows()]
    for path in sorted((ROOT / "tests" / "e2e" / "faults").glob("test_*.py")):
        for inner in collected_from(path):
            assert (path, inner) in named, f"{path.name}::{'::'.join(inner)}"


def test_few_lines_lean_on_a_whole_file():
    assert sum(not names_of(row[2])[1] for row in rows()) == NUM_WHOLE_FILES
