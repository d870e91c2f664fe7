from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from hilora_cli.main import app
from hilora_lab.evaluation import embedding
from tests.fakes.router_encoder import HashEncoder


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "made_up.jsonl"
    rows = [
        {
            "task": task,
            "cluster": task[0],
            "split": "fit" if number < 6 else "later",
            "text": f"{task}: please handle number {number}",
            "input_only": f"number {number} of {task}",
        }
        for task in ("add", "average", "bake", "boil")
        for number in range(9)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("field", ["text", "input_only"])
def test_the_report_is_json_on_standard_output(data, tmp_path, monkeypatch, field):
    monkeypatch.setattr(embedding, "MiniLMEncoder", HashEncoder)
    out = tmp_path / "report.json"
    result = CliRunner().invoke(
        app,
        [
            *("bench", "routing", "--data", str(data), "--query-split", "later", "--field", field, "--json"),
            *("--out", str(out), "--embeddings", str(tmp_path / "embeddings.safetensors"), "--samples", "4"),
        ],
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert json.loads(out.read_text()) == report
    assert (report["field"], report["query_split"], report["num_queries"]) == (field, "later", 12)
    assert report["num_samples"] == [4, 4]
    assert report["warnings"] == ["4 adapters have fewer than 5 samples: little tells them apart."]
    assert report["default"] in report["scorers"]
    assert "stacked" in result.stderr


def test_a_split_without_queries_is_refused(data, monkeypatch):
    monkeypatch.setattr(embedding, "MiniLMEncoder", HashEncoder)
    result = CliRunner().invoke(app, ["bench", "routing", "--data", str(data), "--query-split", "nowhere"])
    assert result.exit_code != 0
    assert getattr(result.exception, "code", "") == "invalid_routing_data"
