"""The dashboards as files: Grafana can load them, and they read only figures that exist."""

from __future__ import annotations

import re

import pytest

from tests.builders.dashboards import boards, panel_queries, selectors_of
from tests.builders.prometheus import rules
from tests.contract.metrics.test_names import CERTIFICATE, REGISTRY, ROUTER, WORKER, prefixed

BOARDS = boards()
_HISTOGRAM_OR_COUNTER = re.compile(r"_(?:bucket|sum|count|total)$")


def known_names():
    services = {"router": ROUTER, "worker": WORKER, "registry": REGISTRY}
    figures = set().union(*(prefixed(service, names | CERTIFICATE) for service, names in services.items()))
    return figures | {rule["record"] for rule in rules() if "record" in rule} | {"up"}


def read_names(expression):
    return {_HISTOGRAM_OR_COUNTER.sub("", selector.partition("{")[0]) for selector in selectors_of(expression)}


def test_the_promised_dashboards_are_there():
    assert {"routing-quality", "serving", "registry"} == set(BOARDS)


@pytest.mark.parametrize("name", BOARDS)
def test_grafana_can_load_it(name):
    board = BOARDS[name]
    panels = board["panels"]
    assert board["schemaVersion"] >= 36
    assert board["uid"].startswith("hilora-") and board["title"].startswith("HiLoRA: ")
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGH"[: len(panel["targets"])])


@pytest.mark.parametrize("name", BOARDS)
def test_no_two_panels_lie_on_one_another(name):
    taken = set()
    for panel in BOARDS[name]["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert taken.isdisjoint(cells), panel["title"]
        taken |= cells


def test_uids_and_titles_differ():
    assert len({board["uid"] for board in BOARDS.values()}) == len(BOARDS)
    assert len({board["title"] for board in BOARDS.values()}) == len(BOARDS)


@pytest.mark.parametrize("query", panel_queries(), ids=str)
def test_a_panel_reads_only_what_exists(query):
    assert read_names(query.expression)
    assert read_names(query.expression) <= known_names()


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_reads_only_what_exists(rule):
    assert read_names(rule["expr"])
    assert read_names(rule["expr"]) <= known_names()


def test_a_name_that_does_not_exist_is_noticed():
    assert read_names('sum(rate(hilora_router_nothing_total{a="b"}[5m]))') - known_names() == {"hilora_router_nothing"}
