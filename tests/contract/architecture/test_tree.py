"""Rules about the tree that no linter knows."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
MAX_LINES = 400
FORBIDDEN_NAMES = {"utils.py", "helpers.py", "manager.py", "misc.py", "common.py"}


def tracked(pattern: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", pattern],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


PYTHON_FILES = [path for path in tracked("*.py") if "proto/gen" not in str(path)]


class TestFiles:
    def test_there_are_files_to_check(self):
        assert len(PYTHON_FILES) > 50

    @pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(ROOT)))
    def test_a_file_does_one_thing(self, path):
        assert len(path.read_text().splitlines()) <= MAX_LINES
        assert path.name not in FORBIDDEN_NAMES

    def test_nothing_is_left_for_later(self):
        marker = "TO" + "DO"

        assert [path for path in PYTHON_FILES if marker in path.read_text()] == []

    def test_no_path_of_a_developers_machine(self):
        needle = "/wo" + "rk/"
        texts = [*PYTHON_FILES, *tracked("*.md"), *tracked("*.toml"), *tracked("*.json"), *tracked("Makefile")]

        assert [path for path in texts if needle in path.read_text(errors="replace")] == []


class TestAnatomy:
    @pytest.mark.parametrize("service", ["router", "registry", "worker"])
    def test_every_service_has_the_same_rooms(self, service):
        folder = ROOT / "services" / service

        present = {path.stem for path in folder.iterdir()}

        assert {"__main__", "bootstrap", "settings", "ports", "entrypoints", "infra"} <= present

    @pytest.mark.parametrize("path", ["proto", "tests", "README.md", "services/standalone", "hilora", "hilora_lab"])
    def test_the_top_level_is_where_newcomers_look(self, path):
        assert (ROOT / path).exists()
