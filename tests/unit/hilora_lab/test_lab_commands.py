from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from hilora.errors import Conflict
from hilora_cli.lab import app, score_table
from hilora_lab.testbed.report import TaskScore

FOLDER = Path(__file__).resolve().parents[3] / "examples" / "testbed"


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class TestBuildTestbed:
    def test_an_existing_folder_is_not_overwritten(self):
        result = CliRunner().invoke(app, ["build-testbed", "--out", str(FOLDER)])

        assert isinstance(result.exception, Conflict)
        assert (FOLDER / "tasks.jsonl").is_file()

    def test_the_table_ends_with_the_means(self):
        shared = {"family": "copy", "num_prompts": 4, "base": 0.0}
        scores = [
            TaskScore(task="copy-letters", domain="letters", own_adapter=1.0, siblings=0.5, **shared),
            TaskScore(task="copy-digits", domain="digits", own_adapter=0.5, siblings=None, **shared),
        ]
        console = Console(file=StringIO(), width=100)

        console.print(score_table(scores))

        *_, means, _border = console.file.getvalue().splitlines()
        assert "copy-letters" in console.file.getvalue()
        assert all(text in means for text in ("all with adapter", "0.000", "0.750", "0.500"))


class TestAblate:
    def test_the_fit_split_is_not_for_scoring(self):
        result = CliRunner().invoke(app, ["ablate", "--testbed", str(FOLDER), "--split", "fit"])

        assert result.exit_code == 2
        assert "dev or test" in result.output
