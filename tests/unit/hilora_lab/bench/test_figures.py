from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilora.errors import InvalidInput
from hilora_lab.bench.cold_figure import percentile
from hilora_lab.bench.document import BEGIN, END, insert_generated
from hilora_lab.bench.engine_bench import BENCH_MODELS, BenchOrder
from hilora_lab.bench.figure import FIGURES

CONTRACT = {
    "hilora_vs_base_decode_b1",
    "hilora_vs_base_decode_b8",
    "hilora_vs_base_decode_b32",
    "hilora_vs_base_prefill",
    "idle_lora_vs_no_lora",
    "vs_peft_mixed_batch",
    "vs_peft_arrow",
    "vs_generate_b8",
    "vs_generate_b32",
    "vs_transformers_cb_768",
    "pool_2000_vs_20",
    "cold_adapter_p99_itl",
}


class TestFigures:
    def test_the_keys_are_the_contract(self):
        assert FIGURES.keys() == CONTRACT

    def test_a_limit_is_met_from_below_and_a_goal_from_above(self):
        limit, goal = FIGURES["cold_adapter_p99_itl"], FIGURES["vs_peft_arrow"]

        assert limit.is_met(1.3)
        assert not limit.is_met(1.31)
        assert goal.is_met(4.0)
        assert not goal.is_met(3.99)


class TestOrder:
    def test_a_whole_run_measures_every_figure_at_least_once_and_the_main_ones_on_both_models(self):
        order = BenchOrder()
        first, second = (order.keys_for(model) for model in BENCH_MODELS)

        assert first | second == CONTRACT
        assert {key for key in CONTRACT if key.startswith("hilora_vs_base")} <= first & second

    @pytest.mark.parametrize("models", [BENCH_MODELS, BENCH_MODELS[:1], ("tiny",)])
    def test_a_quick_run_has_the_figures_of_batches_8_and_32(self, models):
        order = BenchOrder(models=models, is_quick=True)

        keys = frozenset[str]().union(*(order.keys_for(model) for model in models))

        assert keys >= {key for key in CONTRACT if key.endswith(("_b8", "_b32"))}

    def test_one_model_measures_everything(self):
        assert BenchOrder(models=("llama-1024x12",)).keys_for("llama-1024x12") == CONTRACT

    def test_an_unknown_figure_is_refused(self):
        with pytest.raises(InvalidInput) as caught:
            BenchOrder(only=("vs_magic",))

        assert caught.value.code == "unknown_figure"

    def test_rounds_are_the_number_of_ratios(self):
        assert BenchOrder(num_rounds=7).sizes_for("llama-1024x12").num_rounds == 7


class TestPercentile:
    @given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), share=st.floats(0.01, 1.0))
    def test_it_is_the_least_value_that_covers_the_share(self, values, share):
        found = percentile(values, share)
        needed = max(1, math.ceil(share * len(values)))

        assert found in values
        assert sum(value <= found for value in values) >= needed
        assert sum(value < found for value in values) < needed


class TestInsertGenerated:
    def test_what_stands_around_it_stays(self):
        document = f"before\n{BEGIN}\nold\n{END}\nafter\n"

        updated = insert_generated(document, "new \\1 text")

        assert updated == f"before\n{BEGIN}\n\nnew \\1 text\n\n{END}\nafter\n"
        assert insert_generated(updated, "new \\1 text") == updated

    def test_a_page_without_a_place_for_it_is_refused(self):
        with pytest.raises(InvalidInput) as caught:
            insert_generated("nothing here", "text")

        assert caught.value.code == "markers_missing"
