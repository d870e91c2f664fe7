"""Keys and values of running requests of an encoder-decoder model, one slot each.

Shapes: N slots, H heads, L positions of a slot (`max_len`), D head dimension.

A slot has room for prompt and answer together: the answer's tokens fill it from the front, what cross-attention made of
the prompt lies at its end (`seq2seq_attention`). Prompts are never shared: an encoder reads them in both directions, so
no part of one is the same in another.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import torch

from services.worker.engine.kv.kv_handle import KvHandle


class Seq2SeqKvCache:
    """`num_slots` slots of `max_len` positions in every decoder layer.

    Args:
        num_layers: decoder layers of the model.
        num_slots: requests at once.
        num_heads: heads of a layer.
        max_len: prompt and answer tokens of one request.
        head_dim: size of a head.
        dtype: of keys and values.
        device: where they live.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_slots: int,
        num_heads: int,
        max_len: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_layers, num_slots, num_heads, max_len, head_dim)
        # Zeros, not garbage: a masked position still multiplies its value by 0, and 0 * NaN is NaN.
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)
        self._num_slots = num_slots
        self._max_len = max_len
        # A heap, so that the slots in use stay close together: attention reads one range of them.
        self._empty = list(range(num_slots))
        self._slot_of: dict[str, int] = {}
        # Positions that may not be clear, from the front and from the back: only these have to be cleared.
        self._num_touched = [(0, 0)] * num_slots

    @property
    def num_layers(self) -> int:
        """Layers that have room in it."""
        return int(self._keys.shape[0])

    @property
    def usage(self) -> float:
        """Share of the slots that requests hold, 0 to 1."""
        return len(self._slot_of) / self._num_slots

    @property
    def owners(self) -> frozenset[str]:
        """Request ids that hold a slot."""
        return frozenset(self._slot_of)

    def keys(self, layer_idx: int) -> torch.Tensor:
        """Keys of a layer `[N, H, L, D]`, to be read and written in place."""
        return self._keys[layer_idx]

    def values(self, layer_idx: int) -> torch.Tensor:
        """Values of a layer `[N, H, L, D]`, to be read and written in place."""
        return self._values[layer_idx]

    def can_admit(self, num_tokens: int) -> bool:
        """Whether a slot is free, and long enough."""
        return num_tokens <= self._max_len and bool(self._empty)

    def allocate(self, owner: str, token_ids: Sequence[int], *, prefix_key: str | None) -> KvHandle:
        """A slot. Whatever the prefix key says, nothing of it is known before its whole prompt is read.

        Raises:
            ValueError: no slot is free, there are too many tokens for one, or the owner has one.
        """
        del prefix_key
        if owner in self._slot_of:
            raise ValueError(f"{owner} holds a slot already")
        if not self.can_admit(len(token_ids)):
            raise ValueError("no free slot, or too many tokens for one")
        self._slot_of[owner] = heapq.heappop(self._empty)
        return KvHandle(owner=owner)

    def reserve(self, handle: KvHandle, num_tokens: int) -> bool:
        """Whether a slot is that long; it is the request's as a whole."""
        self.slot_of(handle)
        return num_tokens <= self._max_len

    def free(self, handle: KvHandle, *, token_ids: Sequence[int], num_written: int, is_reusable: bool) -> None:
        """Give a slot back, cleared: the next owner's masked positions must be finite, and one request's values have no
        business in another one's memory."""
        del token_ids, num_written, is_reusable
        slot = self.slot_of(handle)
        del self._slot_of[handle.owner]
        num_front, num_back = self._num_touched[slot]
        for kept in (self._keys, self._values):
            kept[:, slot, :, :num_front].zero_()
            kept[:, slot, :, self._max_len - num_back :].zero_()
        self._num_touched[slot] = (0, 0)
        heapq.heappush(self._empty, slot)

    def slot_of(self, handle: KvHandle) -> int:
        """The slot of a request.

        Raises:
            ValueError: it holds none.
        """
        slot = self._slot_of.get(handle.owner)
        if slot is None:
            raise ValueError(f"{handle.owner} holds no slot")
        return slot

    def touch(self, slot: int, *, num_answer: int, num_prompt: int) -> None:
        """Note that an answer of so many tokens, to a prompt of so many, is about to be written."""
        num_front, num_back = self._num_touched[slot]
        self._num_touched[slot] = (max(num_front, num_answer), max(num_back, num_prompt))

    def check_integrity(self) -> None:
        """AssertionError unless every slot is owned or empty, and what was not written is clear."""
        owned, empty = set(self._slot_of.values()), set(self._empty)
        assert len(empty) == len(self._empty), "a slot is empty twice"
        assert len(owned) == len(self._slot_of), "two requests share a slot"
        assert not owned & empty, "an owned slot counts as empty"
        assert owned | empty == set(range(self._num_slots)), "a slot is lost"
        for slot, (num_front, num_back) in enumerate(self._num_touched):
            assert slot in owned or not num_front + num_back, f"slot {slot} was left without being cleared"
            assert num_front + num_back <= self._max_len, f"prompt and answer meet in slot {slot}"
            untouched = slice(num_front, self._max_len - num_back)
            assert not self._keys[:, slot, :, untouched].any(), f"slot {slot} still holds keys"
            assert not self._values[:, slot, :, untouched].any(), f"slot {slot} still holds values"
