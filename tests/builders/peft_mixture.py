"""Adapters of the shipped testbed mixed by PEFT itself."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch

from tests.builders.logits import full_forward_logits
from tests.builders.strategy_bed import NAMES, TESTBED, base_model


@cache
def peft_pool() -> Any:
    """All adapters of the bed on one base, in float64."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first, *others = NAMES
        model = PeftModel.from_pretrained(
            base_model(), TESTBED / "adapters" / first, adapter_name=first, autocast_adapter_dtype=False
        )
        for name in others:
            model.load_adapter(TESTBED / "adapters" / name, adapter_name=name, autocast_adapter_dtype=False)
    return model.to(torch.float64).eval()


def mixed_by_peft(weights: Mapping[str, float], prompt: Sequence[int], completion: Sequence[int]) -> torch.Tensor:
    """Logits of the positions that the completion was sampled from, under `sum_i w_i delta_i`; without any, the base's.

    One adapter at weight 1 is switched on as it is; several are put side by side, which is exact.
    """
    model = peft_pool()
    if not weights:
        with model.disable_adapter():
            return full_forward_logits(model, list(prompt), list(completion))
    if list(weights.values()) == [1.0]:
        model.set_adapter(next(iter(weights)))
        return full_forward_logits(model, list(prompt), list(completion))
    model.add_weighted_adapter(list(weights), list(map(float, weights.values())), "mixture", combination_type="cat")
    try:
        model.to(torch.float64)
        model.set_adapter("mixture")
        return full_forward_logits(model, list(prompt), list(completion))
    finally:
        model.delete_adapter("mixture")
