"""Rotary positions whose frequencies would depend on who else is in the batch.

Two ways of stretching a context, `dynamic` and `longrope`, choose their frequencies by the longest text at hand.
transformers decides that anew in each forward pass, by the largest position in it: in a packed batch one request's
length would turn another one's keys, and a growing request would leave its own cached keys behind. An engine knows the
longest text it admits, so the choice is made once, for that.
"""

from __future__ import annotations

from typing import Any

from torch import nn

_FIXED = "fixed"
"""A kind that transformers does not recompute."""


def fix_rotary_frequencies(model: nn.Module, *, max_model_len: int) -> None:
    """Make every position embedding of a model use the frequencies for texts of `max_model_len` tokens, in place."""
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        if isinstance(kind, str):
            if _is_recomputed(kind):
                _fix(module, kind, max_model_len, layer_type=None)
                vars(module)["rope_type"] = _FIXED
        elif isinstance(kind, dict):
            # Models with several kinds of layers keep one set of frequencies for each of them.
            kinds: dict[str, str] = kind
            for layer_type, of_layers in list(kinds.items()):
                if _is_recomputed(of_layers):
                    _fix(module, of_layers, max_model_len, layer_type=layer_type)
                    kinds[layer_type] = _FIXED


def _is_recomputed(kind: str) -> bool:
    return "dynamic" in kind or kind == "longrope"


def _fix(module: Any, kind: str, max_model_len: int, *, layer_type: str | None) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    prefix = "" if layer_type is None else f"{layer_type}_"
    device = getattr(module, f"{prefix}inv_freq").device
    options: dict[str, Any] = {} if layer_type is None else {"layer_type": layer_type}
    frequencies, scaling = ROPE_INIT_FUNCTIONS[kind](module.config, device, seq_len=max_model_len, **options)
    module.register_buffer(f"{prefix}inv_freq", frequencies, persistent=False)
    setattr(module, f"{prefix}attention_scaling", scaling)
