from __future__ import annotations

from hilora_lab.bench.breakdown import PARTS, measure_breakdown, seconds_by_part
from hilora_lab.bench.session import TINY_SIZES, BenchSession

LINEAR = ("~", 0, "<built-in method torch._C._nn.linear>")
COPY = ("~", 0, "<method 'index_copy_' of 'torch._C.TensorBase' objects>")
ATTENTION = ("/x/services/worker/models/slot_attention.py", 10, "attend")
GATED = ("/x/services/worker/lora/layers/gated_linear.py", 5, "forward")
NORM = ("/x/transformers/models/llama/modeling_llama.py", 7, "forward")


class TestSecondsByPart:
    def test_own_time_goes_to_the_functions_part_and_builtins_count_for_their_callers(self):
        rows = {
            LINEAR: (3, 3, 5.0, 5.0, {GATED: (3, 3, 5.0, 5.0)}),
            COPY: (2, 2, 3.0, 3.0, {ATTENTION: (1, 1, 2.0, 2.0), NORM: (1, 1, 1.0, 1.0)}),
            ATTENTION: (1, 1, 0.5, 2.5, {}),
            GATED: (3, 3, 0.25, 5.25, {}),
            NORM: (1, 1, 0.125, 1.125, {}),
        }

        found = seconds_by_part(rows)

        assert found == {
            "linear layers": 5.0,
            "attention": 2.5,
            "rest of the model": 1.125,
            "components": 0.25,
            "sampling and text": 0.0,
            "scheduling and batches": 0.0,
        }

    def test_no_time_is_lost(self):
        rows = {LINEAR: (1, 1, 1.0, 1.0, {}), COPY: (1, 1, 2.0, 2.0, {}), GATED: (1, 1, 4.0, 4.0, {})}

        assert sum(seconds_by_part(rows).values()) == 7.0


def test_a_step_with_plans_spends_time_on_components():
    session = BenchSession(model="tiny", sizes=TINY_SIZES, seed=0, on_progress=lambda *_: None)

    found = measure_breakdown(session, batch_size=2, has_plans=True)

    assert tuple(found) == PARTS
    assert all(value > 0 for value in found.values())
