from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def prometheus_rule():
    file = ROOT / "scripts" / "generate_prometheus_rule.py"
    spec = importlib.util.spec_from_file_location("generate_prometheus_rule", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.prometheus_rule


def test_the_groups_of_all_files_stand_in_one_object(prometheus_rule, tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.yml").write_text(f"groups: [{{name: {name}, rules: [{{alert: Down, expr: up == 0}}]}}]")

    document = yaml.safe_load(prometheus_rule(tmp_path))

    assert document["kind"] == "PrometheusRule"
    assert [group["name"] for group in document["spec"]["groups"]] == ["a", "b"]
    assert document["spec"]["groups"][0]["rules"] == [{"alert": "Down", "expr": "up == 0"}]


def test_no_rules_at_all_are_an_error(prometheus_rule, tmp_path):
    with pytest.raises(FileNotFoundError):
        prometheus_rule(tmp_path)
