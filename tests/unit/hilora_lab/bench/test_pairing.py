from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilora_lab.bench.pairing import ratios, summarise, take_turns


class TestSummarise:
    def test_middle_spread_and_count(self):
        assert summarise([3.0, 1.0, 2.0, 10.0]).as_json() == {"median": 2.5, "min": 1.0, "max": 10.0, "n": 4}

    def test_nothing_measured_is_no_figure(self):
        with pytest.raises(ValueError, match="nothing was measured"):
            summarise([])


class TestTakeTurns:
    def test_order_turns_around_every_round_and_warmups_do_not_count(self):
        calls: list[tuple[str, int]] = []

        def variant(name: str):
            return lambda round_idx: calls.append((name, round_idx)) or float(round_idx)

        values = take_turns({"a": variant("a"), "b": variant("b")}, num_rounds=2, num_warmups=1)

        assert calls == [("b", -1), ("a", -1), ("a", 0), ("b", 0), ("b", 1), ("a", 1)]
        assert values == {"a": [0.0, 1.0], "b": [0.0, 1.0]}

    @given(num_rounds=st.integers(1, 8), num_warmups=st.integers(0, 3), num_variants=st.integers(1, 4))
    def test_every_variant_runs_once_a_round(self, num_rounds, num_warmups, num_variants):
        told: list[int] = []
        names = [str(idx) for idx in range(num_variants)]

        values = take_turns(
            dict.fromkeys(names, float), num_rounds=num_rounds, num_warmups=num_warmups, on_round=told.append
        )

        assert values == {name: [float(idx) for idx in range(num_rounds)] for name in names}
        assert told == list(range(num_rounds))


def test_ratios_belong_to_one_round():
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]

    with pytest.raises(ValueError, match="argument 2 is longer"):
        ratios([1.0], [1.0, 2.0])
