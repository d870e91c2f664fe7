from __future__ import annotations

import pytest

from hilora.errors import InvalidSamplingParams
from services.worker.engine.sampling_params import MAX_STOP_LENGTH, MAX_STOP_TEXTS, SamplingParams


class TestSamplingParams:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("max_tokens", 0),
            ("temperature", -0.1),
            ("temperature", float("nan")),
            ("temperature", float("inf")),
            ("top_p", 0.0),
            ("top_p", 1.01),
            ("top_p", float("nan")),
            ("top_k", -1),
            ("seed", -1),
            ("seed", 2**64),
            ("stop", ("",)),
            ("stop", ("x" * (MAX_STOP_LENGTH + 1),)),
            ("stop", ("x",) * (MAX_STOP_TEXTS + 1)),
        ],
    )
    def test_names_the_field_that_is_out_of_range(self, field, value) -> None:
        with pytest.raises(InvalidSamplingParams) as caught:
            SamplingParams(**{field: value})
        assert caught.value.place == field
        assert caught.value.remedy

    @pytest.mark.parametrize(
        "values",
        [
            {},
            {"temperature": 0.0},
            {"top_p": 1.0},
            {"seed": 2**64 - 1},
            {"stop": ("x",) * MAX_STOP_TEXTS},
            {"top_k": 1},
        ],
    )
    def test_takes_the_ends_of_each_range(self, values) -> None:
        params = SamplingParams(**values)
        assert params.is_greedy == (params.temperature == 0)
