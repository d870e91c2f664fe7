from __future__ import annotations

import json
import re
import shlex
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from hilora.errors import InvalidInput
from hilora_cli.bench import ratio_table
from hilora_cli.main import app
from hilora_lab.bench.document import BEGIN, END
from hilora_lab.bench.figure import FIGURES

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "benchmarks.md"


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exception is None, result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Path]:
    """A whole run of the tiny shape: its report, its picture."""
    folder = tmp_path_factory.mktemp("bench")
    files = {"report": folder / "report.json", "plot": folder / "ratios.svg"}
    run("engine", "--shape", "tiny", "--threads", "1", "--out", str(files["report"]), "--plot", str(files["plot"]))
    return files


class TestEngine:
    def test_every_figure_of_the_contract_is_there(self, whole):
        report = json.loads(whole["report"].read_text())

        assert report["ratios"].keys() == FIGURES.keys()
        for summary in report["ratios"].values():
            assert summary.keys() == {"median", "min", "max", "n"}
            assert 0 < summary["min"] <= summary["median"] <= summary["max"]
            assert summary["n"] >= 5

    def test_the_report_says_where_and_with_what(self, whole):
        report = json.loads(whole["report"].read_text())

        assert report["machine"]["torch"] == torch.__version__
        assert report["machine"]["num_threads"] == 1
        assert re.fullmatch(r"[0-9a-f]{10}\+?|", report["machine"]["commit"])
        assert report["workload"]["candidates_per_request"] == 3
        profiled = {f"{name}_b{size}" for name in ("base", "hilora") for size in (1, 8, 32)}
        assert report["breakdown_ms"]["tiny"].keys() == profiled

    def test_memory_of_an_adapter_is_told_beside_its_components(self, whole):
        memory = json.loads(whole["report"].read_text())["models"]["tiny"]["extras"]["pool_memory"]

        assert memory["host_bytes_per_adapter"] > 0
        assert memory["device_bytes_per_adapter"] >= memory["component_bytes_per_adapter"]

    def test_cold_adapters_were_really_read(self, whole):
        extras = json.loads(whole["report"].read_text())["models"]["tiny"]["extras"]

        assert extras["cold_adapter_reads"]["files_read"] >= 5 * 3

    def test_the_picture_names_the_figures(self, whole):
        assert whole["plot"].read_text().startswith("<?xml")

    def test_quick_prints_one_json_object_and_the_table_goes_to_standard_error(self):
        report = json.loads(run("engine", "--json", "--quick", "--shape", "tiny", "--rounds", "1"))

        wanted = {key for key in FIGURES if key.endswith(("_b8", "_b32"))}
        assert report["ratios"].keys() == wanted
        assert report["breakdown_ms"] == {}

    def test_single_figures_can_be_asked_for(self):
        key = "hilora_vs_base_prefill"

        report = json.loads(run("engine", "--json", "--only", key, "--shape", "tiny", "--rounds", "2", "--no-profile"))

        assert list(report["ratios"]) == [key]
        assert report["ratios"][key]["n"] == 2

    def test_an_unknown_figure_or_model_is_refused(self):
        for arguments in (["--only", "vs_magic"], ["--model", "gpt-9"]):
            result = CliRunner().invoke(app, ["bench", "engine", *arguments])
            assert isinstance(result.exception, InvalidInput)


class TestReport:
    def test_tables_have_a_line_for_every_figure(self, whole):
        text = run("report", "--json", str(whole["report"]))

        assert all(f"`{key}`" in text for key in FIGURES)
        assert "linear layers" in text

    def test_a_page_is_brought_up_to_date(self, whole, tmp_path):
        page, plot = tmp_path / "page.md", tmp_path / "ratios.png"
        page.write_text(f"# Title\n{BEGIN}\n{END}\nend\n")

        run("report", "--json", str(whole["report"]), "--update", str(page), "--plot", str(plot))

        assert "`vs_peft_arrow`" in page.read_text()
        assert page.read_text().startswith("# Title\n")
        assert page.read_text().endswith("end\n")
        assert plot.read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize("content", ["not json", "{}"])
    def test_something_else_is_refused(self, content, tmp_path):
        source = tmp_path / "report.json"
        source.write_text(content)

        result = CliRunner().invoke(app, ["bench", "report", "--json", str(source)])

        assert isinstance(result.exception, InvalidInput)
        assert result.exception.code == "malformed_report"

    def test_the_screen_shows_medians_and_goals(self, whole):
        console = Console(file=StringIO(), width=160)

        console.print(ratio_table(json.loads(whole["report"].read_text())))

        assert ">= 0.985" in console.file.getvalue()
        assert "cold / warm" in console.file.getvalue()


class TestPage:
    """Every command of docs/benchmarks.md about the engine, in tiny form; the other benches have tests of their own."""

    def commands(self) -> list[list[str]]:
        # A command may go on in the next line, as in a shell.
        text = re.sub(r" \\\n +", " ", PAGE.read_text())
        blocks = re.findall(r"^    (hilora .*)$", text, re.MULTILINE)
        commands = [shlex.split(line)[1:] for line in blocks]
        return [command for command in commands if command[:1] == ["bench"] and command[1] in {"engine", "report"}]

    def test_there_are_commands(self):
        assert any(command[:2] == ["bench", "engine"] for command in self.commands())
        assert any(command[:2] == ["bench", "report"] for command in self.commands())

    def test_they_run(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for folder in ("docs/benchmarks", "docs/images"):
            (tmp_path / folder).mkdir(parents=True)
        (tmp_path / "docs" / "benchmarks.md").write_text(PAGE.read_text())
        for command in self.commands():
            is_engine = command[1] == "engine"
            tiny = ["--shape", "tiny", "--rounds", "1", "--threads", "1", "--no-profile"] if is_engine else []
            if is_engine and "--only" not in command:
                # A whole run, and a quick one, is what the tests above look at.
                tiny.extend(["--only", "hilora_vs_base_prefill"])
            result = CliRunner().invoke(app, [*command, *tiny])
            assert result.exception is None, (command, result.exception)

        assert "tiny" in (tmp_path / "docs" / "benchmarks.md").read_text()
        assert list((tmp_path / "docs" / "images").iterdir())

    def test_its_tables_are_those_of_the_saved_report(self):
        saved = ROOT / "docs" / "benchmarks" / "engine.json"

        text = run("report", "--json", str(saved))

        assert f"{BEGIN}\n\n{text.strip()}\n\n{END}" in PAGE.read_text()
