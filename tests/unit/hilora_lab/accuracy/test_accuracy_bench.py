"""The bench on a part of the shipped pool: the worker's engine, the product's strategies, the report's contract."""

from __future__ import annotations

import json

import pytest
from transformers import AutoModelForCausalLM

from hilora.errors import InvalidInput, UnknownAdapter
from hilora_lab.accuracy import accuracy_bench
from hilora_lab.accuracy.accuracy_bench import AccuracyBench
from hilora_lab.accuracy.accuracy_document import accuracy_markdown
from hilora_lab.accuracy.accuracy_plots import draw_accuracy
from hilora_lab.accuracy.accuracy_report import accuracy_report, run_accuracy
from hilora_lab.accuracy.engine_scorer import PlannedExample
from hilora_lab.accuracy.planner import Learned, Planner
from hilora_lab.evaluation.gated_model import GatedModel
from tests.builders.plain_encoder import PlainEncoder

STRATEGIES = ("retriever-selection", "uniform", "retriever-fusion", "ramole")


@pytest.fixture(scope="module")
def run(bench):
    return run_accuracy(bench, STRATEGIES)


@pytest.fixture(scope="module")
def report(run):
    return accuracy_report(run, STRATEGIES, seed=0)


class TestAnswers:
    def test_the_engine_agrees_with_transformers(self, bench, small_testbed):
        lines = bench.asked.by_setting["id"]
        decisions = [
            bench.planner.decide(line.prompt, bench.asked.embedding_of[line.prompt], strategy)
            for line, strategy in zip(lines, ["hilora", "uniform", "hilora-paper"] * len(lines), strict=False)
        ]
        adapters = {
            decided.adapter_id: bench.adapters[decided.adapter_name]
            for one in decisions
            for decided in one.plan.budgets
        }
        by_name = {key.partition("@")[0]: adapter for key, adapter in adapters.items()}
        model = GatedModel(AutoModelForCausalLM.from_pretrained(small_testbed.base_folder).eval(), by_name)
        planned = [
            PlannedExample(plan=decision.plan, example=bench.tokenized(line))
            for decision, line in zip(decisions, lines, strict=True)
        ]

        answered = bench._scorer.answered(planned)

        assert answered == [model.is_answered(one.plan, one.example) for one in planned]
        assert any(answered)
        assert not all(answered)

    def test_a_failure_ends_the_table_and_not_the_bench(self, bench):
        line = bench.asked.by_setting["id"][0]
        plan = bench._pinned(line.task).plan
        (budget,) = plan.budgets
        strange = type(plan)(
            budgets=(type(budget)(adapter_id="nobody@1", adapter_name="nobody", lora_rank=4, num_rocs=4),)
        )

        with pytest.raises(UnknownAdapter):
            bench._scorer.answered([PlannedExample(plan=strange, example=bench.tokenized(line))])

        assert bench._scorer.answered([PlannedExample(plan=plan, example=bench.tokenized(line))]) == [True]


class TestLearned:
    def test_every_task_is_asked_under_its_own_factors(self, bench):
        line = bench.asked.by_setting["id"][0]
        other = next(name for name in bench.adapters if name != line.task)
        learned = Learned(
            task_weights={line.task: {line.task: 1.0}, other: {other: 0.5}},
            task_weights_without_own={line.task: {other: -0.5}},
        )
        planner = Planner(bench.planner.profiles, learned=learned)

        def mixed(**of) -> dict[str, float]:
            decision = planner.decide(line.prompt, bench.asked.embedding_of[line.prompt], "lorahub", **of)
            return {budget.adapter_name: budget.weight for budget in decision.plan.budgets}

        assert mixed(task=line.task) == {line.task: 1.0}
        assert mixed(task=line.task, without=line.task) == {other: -0.5}
        assert mixed(task=other) == {other: 0.5}
        with pytest.raises(InvalidInput) as raised:
            mixed(task="unheard-of")
        assert raised.value.code == "strategy_needs_weights"


class TestHoldingBack:
    def test_flagged_adapters_are_not_in_the_pool_but_may_be_measured_against(self, small_testbed, monkeypatch):
        flags = {"rotate-digits": ("norm_outlier",), "rotate-letters": ("same_task_other_update",)}
        monkeypatch.setattr(
            accuracy_bench, "flags_of", lambda profiles, _: {name: flags.get(name, ()) for name in profiles}
        )
        opened = AccuracyBench(small_testbed, PlainEncoder(small_testbed.lines), limit_per_task=1, holds_back=True)
        opened.close()

        assert opened.held_back == {"rotate-digits": ("norm_outlier",)}
        assert "rotate-digits" not in opened.planner.profiles
        assert "rotate-letters" in opened.planner.profiles
        assert "rotate-digits" in opened.adapters

    def test_nobody_is_held_back_unless_asked(self, bench):
        assert bench.held_back == {}


class TestSettings:
    def test_a_removed_adapter_is_not_in_the_pool_at_all(self, bench, run):
        removed = run.tables["hilora"]["ood"]

        assert all(name != line.task for name, line in zip(removed.chosen, removed.lines, strict=True))
        assert bench.planner.router("rotate-digits").num_adapters == 5

    def test_the_oracle_takes_the_own_adapter_or_the_best_other(self, run):
        oracle = run.tables["oracle"]

        assert [*oracle["id"].chosen] == [line.task for line in oracle["id"].lines]
        family = {"rotate": "rotate", "reverse": "reverse"}
        assert all(
            name.split("-")[0] == family[line.family] and name != line.task
            for name, line in zip(oracle["ood"].chosen, oracle["ood"].lines, strict=True)
        )


class TestReport:
    def test_its_keys_are_the_contract(self, report):
        assert report["default"] == "hilora"
        assert set(report["strategies"]) == {"hilora", "retriever-selection", "uniform", "retriever-fusion"}
        for entry in report["strategies"].values():
            for setting in ("id", "ood", "unseen"):
                found = entry[setting]
                low, high = found["ci"]
                assert low <= found["exact_match"] <= high
                assert found["normalized"] == pytest.approx(
                    found["exact_match"] / report["references"]["oracle"]["id"]["exact_match"]
                )
        assert json.loads(json.dumps(report)) == report

    def test_what_needs_more_than_a_testbed_is_left_out_with_its_reason(self, report):
        assert "strategy_needs_gate" in report["left_out"]["ramole"]

    def test_choosing_pays_and_mixing_everybody_does_not(self, report):
        found = {name: entry["id"]["exact_match"] for name, entry in report["strategies"].items()}

        assert found["hilora"] >= 0.9
        assert found["uniform"] <= found["hilora"] - 0.3
        gap = report["strategies"]["uniform"]["id"]["vs_default"]
        assert gap["difference"] == pytest.approx(found["uniform"] - found["hilora"])
        assert gap["ci"][1] < 0

    def test_settings_without_lines_are_null(self, report):
        assert report["strategies"]["hilora"]["two_skill"] == {
            "exact_match": None,
            "ci": None,
            "normalized": None,
            "n": 0,
        }

    def test_the_same_seed_gives_the_same_answers(self, bench, report):
        again = accuracy_report(run_accuracy(bench, ("uniform",)), ("uniform",), seed=0)

        for name in ("hilora", "uniform"):
            for setting in ("id", "ood", "unseen"):
                ours, theirs = again["strategies"][name][setting], report["strategies"][name][setting]
                assert {key: ours[key] for key in ours if key != "cost"} == {
                    key: theirs[key] for key in theirs if key != "cost"
                }

    def test_choices_are_counted_by_task(self, report):
        assert report["choices"]["id"]["rotate-digits"] == {"rotate-digits": 3}

    def test_the_document_ranks_by_the_mean(self, report):
        machine = {"commit": "abc", "cpu": "some", "num_threads": 1, "torch": "2"}
        text = accuracy_markdown({"testbed": "t", "split": "test", "seed": 0, "machine": machine, **report})

        rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")]
        first_table = rows[: rows.index("| minus the default")]
        assert "Held back" not in text
        assert len(first_table) == 7
        assert first_table.index("| **hilora**") < first_table.index("| uniform")
        assert "| hilora" not in rows[len(first_table) :]

    def test_a_strange_report_is_refused(self):
        with pytest.raises(InvalidInput) as caught:
            accuracy_markdown({"machine": {}})

        assert caught.value.code == "malformed_report"

    def test_pictures_are_drawn(self, report, tmp_path):
        paths = draw_accuracy(report, tmp_path / "plots")

        assert [path.name for path in paths] == ["accuracy-cost.svg", "choices-id.svg", "choices-ood.svg"]
        assert all("</svg>" in path.read_text() for path in paths)
