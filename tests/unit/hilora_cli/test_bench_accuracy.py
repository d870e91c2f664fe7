"""`hilora bench accuracy` and its kin at the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hilora.errors import InvalidInput, UnknownAdapter
from hilora_cli.bench import app
from hilora_cli.bench_accuracy import accuracy_table
from hilora_cli.bench_pools import robustness_table, sensitivity_table

ROOT = Path(__file__).resolve().parents[3]
REPORT = ROOT / "docs" / "benchmarks" / "accuracy.json"


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


class TestAccuracy:
    def test_unknown_strategies_are_refused_before_anything_is_loaded(self):
        result = run("accuracy", "--strategies", "hilora,clairvoyance")

        assert isinstance(result.exception, UnknownAdapter)
        assert result.exception.code == "unknown_strategy"

    @pytest.mark.parametrize("arguments", [["--split", "fit"], ["--gate", "ramole"], ["--gate", "ramole=x@1"]])
    def test_options_without_a_meaning_are_refused(self, arguments):
        result = run("accuracy", "--strategies", "base", *arguments)

        assert result.exit_code == 2

    @pytest.mark.parametrize(
        ("marker", "report"),
        [
            ("accuracy", REPORT),
            ("larger testbed", REPORT.with_name("testbed-large.json")),
            ("larger testbed, held back", REPORT.with_name("testbed-large-held-back.json")),
        ],
    )
    def test_the_page_holds_the_tables_of_the_saved_reports(self, marker, report):
        result = run("accuracy-report", "--json", str(report))
        page = (ROOT / "docs" / "benchmarks.md").read_text()

        assert result.exit_code == 0, result.output
        assert page.partition(f"<!-- {marker}: begin -->")[2].partition(f"<!-- {marker}: end -->")[0].strip() == (
            result.stdout.strip()
        )

    def test_a_broken_report_is_refused(self, tmp_path):
        (tmp_path / "report").write_text("{")

        result = run("accuracy-report", "--json", str(tmp_path / "report"))

        assert isinstance(result.exception, InvalidInput)
        assert result.exception.code == "malformed_report"

    def test_the_table_marks_the_default_and_says_what_is_missing(self):
        report = json.loads(REPORT.read_text())
        report["left_out"] = {"ramole": "strategy_needs_gate: there is none"}
        table = accuracy_table(report)

        assert "hilora (default)" in list(table.columns[0].cells)
        assert "oracle (reference)" in list(table.columns[0].cells)
        assert "strategy_needs_gate" in str(table.caption)


class TestPools:
    def test_unknown_recipes_are_refused(self, tmp_path):
        (tmp_path / "rows.json").write_text("[]")

        result = run("flan", "--data", str(tmp_path / "rows.json"), "--into", str(tmp_path / "x"), "--recipe", "gpt")

        assert result.exit_code == 2
        assert not (tmp_path / "x").exists()

    def test_a_sensitivity_table_has_numbers_routing_and_what_was_left_out(self):
        share = {"exact_match": 0.5, "own_first": 1.0, "candidates": 1.0}
        routed = {"value": 100, "own_first": 0.9, "removed_family_first": 0.8}
        points = [{"value": 3, "id": share, "ood": share}, {"value": "x", "left_out": "not here"}, routed]

        rows = list(zip(*(column.cells for column in sensitivity_table("samples", points).columns), strict=True))

        assert [row[0] for row in rows] == ["3", "x", "100"]
        assert rows[1][1] == "not here"
        assert "0.800" in rows[2][2]

    def test_a_robustness_table_shows_both_policies(self):
        found = {"lost": 0.01, "lost_without_policy": 0.1}
        report = {"adversaries": {"huge-norm": {"id": found, "ood": found, "flags": ["norm_outlier"], "is_met": True}}}

        table = robustness_table(report)

        assert [next(iter(column.cells)) for column in table.columns][2:] == [
            "0.010",
            "0.010",
            "0.100",
            "0.100",
            "True",
        ]
