"""Attention of encoder-decoder models of the T5 family, each request at a position of its own.

Shapes: E prompts of an encoder pass, B rows of a decoder pass, n tokens of a row, N slots, S slots that one product
reads, H heads, L positions of a slot or of a padded prompt, D head dimension.

A slot holds all that a request's answer looks at: from the front, the keys and values of the answer's own tokens; from
the back, right-aligned, those that cross-attention made of the encoded prompt. Both are read in place.

T5's biases depend on distances alone. The encoder's are taken as the model computes them. The decoder's are looked up
by distance, since the rows of a pass stand at different positions, which transformers has no means to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

ATTENTION_NAME = "hilora_seq2seq"
"""Under this name transformers finds `_attend`."""


class Seq2SeqStore(Protocol):
    """Where keys and values live."""

    def keys(self, layer_idx: int) -> torch.Tensor:
        """Keys of a decoder layer `[N, H, L, D]`, contiguous, written in place."""
        ...

    def values(self, layer_idx: int) -> torch.Tensor:
        """Values of a decoder layer `[N, H, L, D]`, contiguous, written in place."""
        ...


class Seq2SeqPass(Protocol):
    """Where one pass's tokens stand."""

    def attend(
        self, layer: AttentionLayer, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rule: T5Rule
    ) -> torch.Tensor:
        """Attend with the query `[B, H, n, D]`; returns the same shape."""
        ...


class Seq2SeqAttentionContext:
    """What the layers of one model share. The runner sets `current` before each pass."""

    def __init__(self) -> None:
        self.current: Seq2SeqPass | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionLayer:
    """What an attention layer is told of itself."""

    context: Seq2SeqAttentionContext
    layer_idx: int
    is_cross: bool = False
    """Whether it looks at the prompt instead of the answer."""
    biases_HL: torch.Tensor | None = None
    """A decoder layer's bias by distance; None if it has none of its own and uses that of the layer before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class T5Rule:
    """How a layer attends."""

    scaling: float
    """Factor of the scores."""
    bias: torch.Tensor | None
    """The model's own bias `[1, H, n, n]`, right where all tokens begin at position 0."""


class EncoderPass:
    """Prompts that are read side by side, padded to the longest.

    Args:
        lengths: tokens of each prompt.
        dtype: of the activations.
        device: of the model.
    """

    def __init__(self, lengths: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> None:
        self._mask: torch.Tensor | None = None
        if min(lengths) < max(lengths):
            lengths_E = torch.tensor(lengths, device=device)
            is_hidden_EL = torch.arange(max(lengths), device=device) >= lengths_E[:, None]
            self._mask = _mask(is_hidden_EL, dtype)[:, None, None, :]

    def attend(
        self, layer: AttentionLayer, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rule: T5Rule
    ) -> torch.Tensor:
        """See `Seq2SeqPass`."""
        assert layer.biases_HL is None, "an encoder's biases are the model's own"
        bias = rule.bias if self._mask is None else self._mask if rule.bias is None else rule.bias + self._mask
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=rule.scaling)


class DecoderPass:
    """The next tokens of some answers, equally many of each.

    Args:
        store: the slots.
        slots: slot of each row, distinct.
        positions: position of each row's first token in its answer; everything before is in the slot.
        num_tokens: tokens of each row.
        prompt_lengths: tokens of each row's prompt.
        dtype: of the activations.
        device: of the model.
    """

    def __init__(
        self,
        store: Seq2SeqStore,
        *,
        slots: Sequence[int],
        positions: Sequence[int],
        num_tokens: int,
        prompt_lengths: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._store = store
        self._dtype = dtype
        first_slot, stop_slot = min(slots), max(slots) + 1
        self._slots = slice(first_slot, stop_slot)
        places = [slot - first_slot for slot in slots]
        self._places: torch.Tensor | None = None
        if places != list(range(stop_slot - first_slot)):
            self._places = torch.tensor(places, device=device)
        # A slot between those of the rows gets numbers too: what is computed for it is dropped.
        firsts, lengths = [0] * (stop_slot - first_slot), [max(prompt_lengths)] * (stop_slot - first_slot)
        for place, position, length in zip(places, positions, prompt_lengths, strict=True):
            firsts[place], lengths[place] = position, length
        steps_n = torch.arange(num_tokens, device=device)
        _, num_heads, max_len, _ = store.keys(0).shape
        # Slot, head and position as one index of rows, which is the fastest write.
        heads_BH1 = (torch.tensor(slots)[:, None, None] * num_heads + torch.arange(num_heads)[:, None]) * max_len
        places_B1n = torch.tensor(positions)[:, None, None] + torch.arange(num_tokens)
        self._write_rows = (heads_BH1 + places_B1n).flatten().to(device)
        self._num_seen = max(positions) + num_tokens
        self._distances_SnL = (torch.tensor(firsts, device=device)[:, None] + steps_n)[..., None] - torch.arange(
            self._num_seen, device=device
        )
        self._num_prompt = max(prompt_lengths)
        self._cross_mask: torch.Tensor | None = None
        if min(lengths) < self._num_prompt:
            padding_S = self._num_prompt - torch.tensor(lengths, device=device)
            is_hidden_SL = torch.arange(self._num_prompt, device=device) < padding_S[:, None]
            self._cross_mask = _mask(is_hidden_SL, dtype)[:, None, None, :]
        self._self_bias: torch.Tensor | None = None

    def attend(
        self, layer: AttentionLayer, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rule: T5Rule
    ) -> torch.Tensor:
        """See `Seq2SeqPass`. The answer's keys and values are written first; those of the prompt are there."""
        keys, values = self._store.keys(layer.layer_idx), self._store.values(layer.layer_idx)
        if layer.is_cross:
            columns = slice(keys.shape[2] - self._num_prompt, keys.shape[2])
            bias = self._cross_mask
        else:
            for kept, new in ((keys, key), (values, value)):
                kept.view(-1, kept.shape[-1]).index_copy_(0, self._write_rows, new.reshape(-1, new.shape[-1]))
            columns = slice(0, self._num_seen)
            bias = self._bias_of(layer)
        if self._places is not None:
            spread = query.new_zeros(self._slots.stop - self._slots.start, *query.shape[1:])
            spread[self._places] = query
            query = spread
        out = functional.scaled_dot_product_attention(
            query, keys[self._slots, :, columns], values[self._slots, :, columns], attn_mask=bias, scale=rule.scaling
        )
        return out if self._places is None else out[self._places]

    def _bias_of(self, layer: AttentionLayer) -> torch.Tensor | None:
        """`[S, H, n, L]`: biases by distance, minus infinity for positions that are still to come."""
        if layer.biases_HL is not None:
            by_distance_HSnL = layer.biases_HL[:, self._distances_SnL.clamp(min=0)]
            is_hidden_SnL = self._distances_SnL < 0
            self._self_bias = by_distance_HSnL.transpose(0, 1).masked_fill(is_hidden_SnL[:, None], -torch.inf)
        return self._self_bias


class AnswerCache:
    """Stands in for transformers' cache in the decoder: attention itself keeps keys and values.

    Both of its halves, as `EncoderDecoderCache` has them: the first hands an answer's keys and values through, the
    second says that those of the prompt are there already.
    """

    def __init__(self, *, num_layers: int, device: torch.device) -> None:
        from transformers import DynamicCache, EncoderDecoderCache

        cache: Any = EncoderDecoderCache(DynamicCache(), DynamicCache())
        cache.self_attention_cache = _PassingCache()
        nothing = torch.zeros(1, 1, 0, 1, device=device)
        cache.cross_attention_cache = _KnownCache(layers=(_KnownLayer(keys=nothing, values=nothing),) * num_layers)
        cache.is_updated = dict.fromkeys(range(num_layers), True)
        self.past_key_values: Any = cache
        """What a model takes as its argument of that name."""


class _PassingCache:
    def get_seq_length(self, *_: Any) -> int:
        return 0

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return keys, values


@dataclass(frozen=True, kw_only=True)
class _KnownLayer:
    keys: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class _KnownCache:
    layers: tuple[_KnownLayer, ...]


def attach_seq2seq_attention(model: nn.Module, *, max_len: int) -> Seq2SeqAttentionContext:
    """Make every attention layer of a T5-like model read its pass from the context that is returned.

    Args:
        model: changed in place.
        max_len: tokens of the longest answer, for the table of biases.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, _attend)
    parts: Any = model
    for half in (parts.encoder, parts.decoder):
        # Each has a config of its own, which older releases do not reach from the whole.
        half.set_attn_implementation(ATTENTION_NAME)
    context = Seq2SeqAttentionContext()
    for layer_idx, block in enumerate(parts.encoder.block):
        _tell(block.layer[0].SelfAttention, AttentionLayer(context=context, layer_idx=layer_idx))
    for layer_idx, block in enumerate(parts.decoder.block):
        own = block.layer[0].SelfAttention
        biases_HL = _biases_by_distance(own, max_len) if own.has_relative_attention_bias else None
        _tell(own, AttentionLayer(context=context, layer_idx=layer_idx, biases_HL=biases_HL))
        cross = block.layer[1].EncDecAttention
        _tell(cross, AttentionLayer(context=context, layer_idx=layer_idx, is_cross=True))
    return context


def write_prompts(
    model: Any, store: Seq2SeqStore, states_ELX: torch.Tensor, slots: Sequence[int], lengths: Sequence[int]
) -> None:
    """Give each prompt's keys and values of all cross-attention layers to its slot.

    Args:
        model: with a T5-like decoder.
        store: the slots.
        states_ELX: what the encoder made of the prompts, padded at the end; X is the model's width.
        slots: slot of each prompt.
        lengths: tokens of each prompt.
    """
    for layer_idx, block in enumerate(model.decoder.block):
        attention = block.layer[1].EncDecAttention
        for linear, kept in ((attention.k, store.keys(layer_idx)), (attention.v, store.values(layer_idx))):
            _, num_heads, max_len, head_dim = kept.shape
            made_ELHD = linear(states_ELX).unflatten(-1, (num_heads, head_dim))
            for prompt, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
                kept[slot, :, max_len - length :] = made_ELHD[prompt, :length].transpose(0, 1)


@torch.no_grad()
def _biases_by_distance(attention: Any, max_len: int) -> torch.Tensor:
    """`[H, max_len]`: what a token adds to its score of the token so many places before it."""
    biases_HL = attention.compute_bias(1, max_len, past_seen_tokens=max_len - 1)[0, :, 0]
    return biases_HL.flip(-1).contiguous()


def _tell(module: nn.Module, layer: AttentionLayer) -> None:
    vars(module)["hilora_layer"] = layer


def _mask(is_hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(is_hidden.shape, dtype=dtype, device=is_hidden.device).masked_fill_(is_hidden, -torch.inf)


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 transformers passes None: it builds no mask for us
    *,
    scaling: float | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The signature transformers calls: tensors are `[B, H, n, D]`, the answer is `[B, n, H, D]`."""
    layer: AttentionLayer = module.hilora_layer
    current = layer.context.current
    assert current is not None, "a forward pass outside a step"
    rule = T5Rule(scaling=query.shape[-1] ** -0.5 if scaling is None else scaling, bias=position_bias)
    return current.attend(layer, query, key, value, rule).transpose(1, 2), None
