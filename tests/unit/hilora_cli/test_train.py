"""`hilora train`, on the shipped testbed: files that workers and routers read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hilora.routing_plan import GateRule
from hilora_cli import server_models
from hilora_cli.main import app
from services.router.infra.weights_file import read_weights
from services.worker.infra.gate_files import GateFiles

TESTBED = str(Path(__file__).resolve().parents[3] / "examples" / "testbed")


def run(*arguments: str) -> dict:
    result = CliRunner().invoke(app, ["train", *arguments, "--testbed", TESTBED, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def test_a_gate_is_written_where_a_worker_finds_it(tmp_path):
    told = run("gate", "--method", "ramole", "--steps", "1", "--out", str(tmp_path), "--name", "mine")
    gate = GateFiles(tmp_path).fetch(told["gate_id"])
    assert gate.rule is GateRule.RAMOLE
    assert told["gate_id"].startswith("mine@")
    assert "model.layers.3.mlp.down_proj" in gate.modules


def test_phatgoose_is_for_the_versions_that_a_server_has(tmp_path, monkeypatch):
    asked = {}

    async def listed(names, url, api_key):
        asked.update(names=names, url=url)
        return {name: f"{name}@0123456789ab" for name in names}

    monkeypatch.setattr(server_models, "_ids", listed)
    told = run("gate", "--method", "phatgoose", "--steps", "1", "--out", str(tmp_path), "--url", "http://127.0.0.1:1")
    gate = GateFiles(tmp_path).fetch(told["gate_id"])
    assert asked["url"] == "http://127.0.0.1:1"
    layer = gate.modules["model.layers.0.self_attn.q_proj"]
    assert set(layer.gates) == {f"{name}@0123456789ab" for name in asked["names"]}


def test_factors_are_written_where_a_router_reads_them(tmp_path):
    out = tmp_path / "weights.json"
    told = run(
        "lorahub", "--task", "sort-letters", "--exclude", "sort-letters", "--adapters", "3", "--evaluations", "8",
        "--out", str(out),
    )  # fmt: skip
    assert read_weights(out) == told["weights"]
    assert "sort-letters" not in told["weights"]
    assert len(told["weights"]) == 3


def test_factors_of_every_task_are_a_folder(tmp_path):
    told = run(
        "lorahub", "--each-task", "--adapters", "2", "--evaluations", "2", "--examples", "1", "--out", str(tmp_path)
    )
    assert set(told["files"]) == {path.name for path in tmp_path.iterdir()}
    assert {"sort-letters.json", "sort-letters.without-own.json"} <= set(told["files"])
    assert "sort-letters" in read_weights(tmp_path / "sort-letters.json")


@pytest.mark.parametrize(
    "arguments", [(), ("--task", "sort-letters", "--each-task"), ("--each-task", "--exclude", "sort-letters")]
)
def test_one_task_or_every_task(tmp_path, arguments):
    result = CliRunner().invoke(
        app, ["train", "lorahub", *arguments, "--testbed", TESTBED, "--out", str(tmp_path / "x")]
    )
    assert result.exit_code == 2
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("arguments", [("gate", "--method", "magic"), ("lorahub", "--task", "no-such-task")])
def test_what_does_not_exist_is_refused(tmp_path, arguments):
    result = CliRunner().invoke(app, ["train", *arguments, "--testbed", TESTBED, "--out", str(tmp_path / "x")])
    assert result.exit_code != 0
    assert not (tmp_path / "x").exists()
