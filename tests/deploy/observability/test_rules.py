"""Prometheus' rules: they are valid, each alarm fires and is silent where it should, and tells what to do."""

from __future__ import annotations

import re
import shutil

import pytest
import yaml

from tests.builders.prometheus import OBSERVABILITY, promtool, rules
from tests.builders.system import ROOT

UNIT_TESTS = ROOT / "tests" / "deploy" / "observability" / "rules"
RUNBOOKS = ROOT / "docs" / "runbooks.md"
ALARMS = {rule["alert"]: rule for rule in rules() if "alert" in rule}


def unit_tests():
    """`(alarm, verdict)` of each unit test, by its name."""
    found = []
    for file in sorted(UNIT_TESTS.glob("*.yml")):
        for test in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]:
            alarm, verdict = re.fullmatch(r"(\w+) (fires|is silent): .+", test["name"]).groups()
            assert f'alertname="{alarm}"' in test["promql_expr_test"][0]["expr"], test["name"]
            assert bool(test["promql_expr_test"][0]["exp_samples"]) == (verdict == "fires"), test["name"]
            found.append((alarm, verdict))
    return found


def test_prometheus_reads_the_configuration_and_the_rules():
    checked = promtool("check", "config", "deploy/observability/prometheus.yml")
    assert checked.returncode == 0, checked.stdout
    assert f"{len(rules())}" == str(sum(int(found) for found in re.findall(r"(\d+) rules found", checked.stdout)))


@pytest.mark.timeout(300)
def test_each_alarm_fires_and_is_silent_where_it_should():
    tested = promtool("test", "rules", *(str(file) for file in sorted(UNIT_TESTS.glob("*.yml"))))
    assert tested.returncode == 0, tested.stdout


def test_no_alarm_is_without_both_tests():
    assert set(unit_tests()) == {(alarm, verdict) for alarm in ALARMS for verdict in ("fires", "is silent")}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("spoilt", "verdict"), [("vector(0) == 1", "fires"), ("vector(1)", "is silent")])
def test_the_tests_notice_alarms_that_never_or_always_fire(tmp_path, spoilt, verdict):
    shutil.copytree(UNIT_TESTS, tmp_path / "tests" / "deploy" / "observability" / "rules")
    folder = tmp_path / "deploy" / "observability" / "rules"
    folder.mkdir(parents=True)
    for file in (OBSERVABILITY / "rules").glob("*.yml"):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        for group in content["groups"]:
            # What is recorded has no say any more, and takes most of the time.
            group["rules"] = [rule | {"expr": spoilt} for rule in group["rules"] if "alert" in rule]
        content["groups"] = [group for group in content["groups"] if group["rules"]]
        (folder / file.name).write_text(yaml.safe_dump(content), encoding="utf-8")

    files = [f"tests/deploy/observability/rules/{file.name}" for file in UNIT_TESTS.glob("*.yml")]
    tested = promtool("test", "rules", *files, cwd=tmp_path)

    noticed = re.findall(r'alertname=\\"(\w+)\\"', tested.stdout)
    assert tested.returncode != 0
    assert set(noticed) == set(ALARMS)
    assert len(noticed) >= sum(found == verdict for _, found in unit_tests())


@pytest.mark.parametrize("alarm", sorted(ALARMS))
def test_each_alarm_leads_to_a_section_that_says_what_to_do(alarm):
    rule = ALARMS[alarm]
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert rule["annotations"]["runbook_url"] == f"docs/runbooks.md#{alarm.lower()}"
    text = RUNBOOKS.read_text(encoding="utf-8")
    section = re.search(rf"^### {alarm}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"docs/runbooks.md has no section {alarm}"
    for part in ("**Means**", "**Look**", "**Do**"):
        assert part in section[1], f"{alarm} does not say: {part}"


def test_the_runbooks_know_no_alarm_that_is_gone():
    assert set(re.findall(r"^### (\w+)$", RUNBOOKS.read_text(encoding="utf-8"), re.MULTILINE)) == set(ALARMS)


def test_the_runbooks_name_settings_codes_and_figures_that_exist():
    text = RUNBOOKS.read_text(encoding="utf-8")
    settings = set(re.findall(r"`(HILORA_[A-Z_]+)`", text))
    assert settings
    assert settings <= set(re.findall(r"`(HILORA_[A-Z_]+)`", (ROOT / "docs" / "configuration.md").read_text("utf-8")))
    sources = "\n".join(
        path.read_text("utf-8") for top in ("hilora", "services") for path in (ROOT / top).rglob("*.py")
    )
    codes = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", text)) - {"low_confidence"}
    codes = {code for code in codes if not code.startswith("hilora_")}
    assert {"no_worker_available", "router_busy"} <= codes
    assert [code for code in sorted(codes) if f'"{code}"' not in sources] == []
