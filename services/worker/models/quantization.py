"""Quantising a base while it is loaded, by transformers' own integrations.

Rank-one components are added to what a layer puts out, so they do not care how the layer keeps its weights: a base may
be quantised here, or come quantised from its checkpoint. Components, cache and activations stay in the compute type.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from hilora.errors import InvalidInput


def quantization_config_of(name: str | None, *, compute_dtype: torch.dtype) -> Any:
    """What `from_pretrained` takes as `quantization_config`.

    Args:
        name: one of `QUANTIZATIONS`, or None to load the weights as they are.
        compute_dtype: of the activations.

    Raises:
        InvalidInput: `invalid_quantization`, for another name; `quantization_not_installed`.
    """
    if name is None:
        return None
    make = _MAKERS.get(name)
    if make is None:
        raise InvalidInput(
            f"{name!r} is no supported quantization.",
            code="invalid_quantization",
            remedy=f"Leave it out, or use one of {', '.join(QUANTIZATIONS)}.",
            place="quantization",
        )
    if importlib.util.find_spec("bitsandbytes") is None or importlib.util.find_spec("accelerate") is None:
        raise InvalidInput(
            f"{name} needs bitsandbytes and accelerate, and they are not both installed.",
            code="quantization_not_installed",
            remedy="Install bitsandbytes and accelerate, or leave quantization out.",
            place="quantization",
        )
    return make(compute_dtype)


def _int8(compute_dtype: torch.dtype) -> Any:
    """Eight bits a weight, inputs quantised row by row as well (LLM.int8, arXiv 2208.07339)."""
    del compute_dtype  # it multiplies in int8 and float16
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True)


def _nf4(compute_dtype: torch.dtype) -> Any:
    """Four bits a weight: the base that QLoRA adapters are trained on (arXiv 2305.14314)."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute_dtype)


_MAKERS: dict[str, Callable[[torch.dtype], Any]] = {"bitsandbytes-int8": _int8, "bitsandbytes-nf4": _nf4}

QUANTIZATIONS = tuple(_MAKERS)
"""Names that `quantization_config_of` knows."""
