"""Keys and values of running requests in contiguous slots.

Shapes: N slots, K key-value heads, L positions of a slot (`max_len`), D head dimension.

A slot belongs to one request from admission to its end. With the prefix cache on, it may afterwards be kept with its
tokens: a later request with the same prefix takes it over, or copies the part they share.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import torch

from services.worker.engine.kv.kv_handle import KvHandle
from services.worker.engine.kv.prefix_cache import SlotPrefix, SlotPrefixes
from services.worker.models.slot_attention import SlotAttentionStep, SlotChunk

_MIN_SHARED_TOKENS = 8
"""Fewer shared tokens are computed again. A template's first words are in every prompt; if they counted as a use of
whatever slot holds them, the order of eviction would mean nothing."""


class SlotKvCache:
    """`num_slots` slots of `max_len` positions in every layer; a `KvCache`.

    Args:
        num_layers: decoder layers of the model.
        num_slots: requests at once.
        num_heads: key-value heads of a layer.
        max_len: positions of a slot.
        head_dim: size of a head.
        dtype: of keys and values.
        device: where they live.
        enable_prefix_cache: whether slots are kept for later requests.
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
        enable_prefix_cache: bool = False,
    ) -> None:
        shape = (num_layers, num_slots, num_heads, max_len, head_dim)
        # Zeros, not garbage: a masked position still multiplies its value by 0, and 0 * NaN is NaN.
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)
        self._num_slots = num_slots
        self._max_len = max_len
        self._is_caching = enable_prefix_cache
        # A heap of slots that are clear: the lowest is taken first, so that attention reads one dense range.
        self._empty = list(range(num_slots))
        self._slot_of: dict[str, int] = {}
        self._key_of: dict[str, str | None] = {}
        # Leading positions of a slot that are not known to be clear. From the steps themselves, not from what the
        # engine counts: a failed pass may have written what it was about to compute.
        self._num_touched = [0] * num_slots
        self._prefixes = SlotPrefixes()

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
        """Keys of a layer `[N, K, L, D]`, to be read and written in place."""
        return self._keys[layer_idx]

    def values(self, layer_idx: int) -> torch.Tensor:
        """Values of a layer `[N, K, L, D]`, to be read and written in place."""
        return self._values[layer_idx]

    def can_admit(self, num_tokens: int) -> bool:
        """Whether a slot can be had, and is long enough."""
        return num_tokens <= self._max_len and len(self._slot_of) < self._num_slots

    def allocate(self, owner: str, token_ids: Sequence[int], *, prefix_key: str | None) -> KvHandle:
        """A slot, if possible one that holds the request's leading tokens; see `KvCache`.

        Raises:
            ValueError: no slot can be had, or the owner has one.
        """
        if owner in self._slot_of:
            raise ValueError(f"{owner} holds a slot already")
        if not self.can_admit(len(token_ids)):
            raise ValueError("no free slot, or too many tokens for one")
        shared = None
        if self._is_caching and prefix_key is not None:
            shared = self._prefixes.best(prefix_key, token_ids)
        if shared is None or prefix_key is None or shared[1] < _MIN_SHARED_TOKENS:
            slot, num_cached = self._take_clear(spare=None), 0
        else:
            source, num_cached = shared
            slot = self._take_shared(source, num_cached)
            if slot != source:
                self._prefixes.mark_used(source)
            # These are right whatever becomes of the new owner, who writes behind them only.
            self._prefixes.put(slot, SlotPrefix(prefix_key, tuple(token_ids[:num_cached])))
        self._slot_of[owner] = slot
        self._key_of[owner] = prefix_key
        return KvHandle(owner=owner, num_cached_tokens=num_cached)

    def reserve(self, handle: KvHandle, num_tokens: int) -> bool:
        """Whether a slot is that long; it is the request's as a whole."""
        self._slot(handle)
        return num_tokens <= self._max_len

    def free(self, handle: KvHandle, *, token_ids: Sequence[int], num_written: int, is_reusable: bool) -> None:
        """Give a slot back; it is kept with its tokens if they may be reused, and cleared otherwise.

        Cleared because the next owner's masked positions must be finite, and because one request's values have no
        business in another one's memory.
        """
        slot = self._slot(handle)
        prefix_key = self._key_of.pop(handle.owner)
        del self._slot_of[handle.owner]
        if is_reusable and self._is_caching and prefix_key is not None and num_written >= _MIN_SHARED_TOKENS:
            self._prefixes.put(slot, SlotPrefix(prefix_key, tuple(token_ids[:num_written])))
        if slot in self._prefixes:
            self._clear(slot, len(self._prefixes[slot].token_ids))
        else:
            self._clear(slot, 0)
            heapq.heappush(self._empty, slot)

    def attention_step(
        self,
        decodes: Sequence[tuple[KvHandle, int]],
        chunks: Sequence[tuple[KvHandle, int, int, int]],
        device: torch.device,
    ) -> SlotAttentionStep:
        """What the model's attention needs of one step; see `KvCache`."""
        slots = [self._slot(handle) for handle, _ in decodes]
        slot_chunks = [
            SlotChunk(row=row, num_tokens=num_tokens, slot=self._slot(handle), start=start)
            for handle, row, start, num_tokens in chunks
        ]
        for slot, (_, position) in zip(slots, decodes, strict=True):
            self._touch(slot, position + 1)
        for chunk in slot_chunks:
            self._touch(chunk.slot, chunk.stop)
        positions = [position for _, position in decodes]
        return SlotAttentionStep(self, slots=slots, positions=positions, chunks=slot_chunks, device=device)

    def check_integrity(self) -> None:
        """AssertionError unless every slot is owned, kept or empty, and what nobody may read is clear."""
        owned, empty = set(self._slot_of.values()), set(self._empty)
        kept = set(self._prefixes) - owned
        assert len(empty) == len(self._empty), "a slot is empty twice"
        assert len(owned) == len(self._slot_of), "two requests share a slot"
        assert not owned & empty, "an owned slot counts as empty"
        assert not kept & empty, "a kept slot counts as empty"
        assert owned | kept | empty == set(range(self._num_slots)), "a slot is lost"
        assert self._key_of.keys() == self._slot_of.keys(), "slots and keys of requests disagree"
        for slot in range(self._num_slots):
            num_used = len(self._prefixes[slot].token_ids) if slot in kept else 0
            num_used = self._num_touched[slot] if slot in owned else num_used
            assert num_used <= self._num_touched[slot], f"slot {slot} keeps tokens that were never written"
            assert not self._keys[:, slot, :, num_used:].any(), f"slot {slot} still holds keys"
            assert not self._values[:, slot, :, num_used:].any(), f"slot {slot} still holds values"

    def _slot(self, handle: KvHandle) -> int:
        slot = self._slot_of.get(handle.owner)
        if slot is None:
            raise ValueError(f"{handle.owner} holds no slot")
        return slot

    def _take_clear(self, *, spare: int | None) -> int:
        """The lowest empty slot, else the one kept longest; `spare` only if there is no other."""
        if self._empty:
            return heapq.heappop(self._empty)
        owned = set(self._slot_of.values())
        kept = [slot for slot in self._prefixes if slot not in owned]
        slot = next((slot for slot in kept if slot != spare), kept[0])
        self._prefixes.drop(slot)
        if slot != spare:
            self._clear(slot, 0)
        return slot

    def _take_shared(self, source: int, num_shared: int) -> int:
        """A slot whose first `num_shared` positions are those of `source`, and whose others are clear."""
        is_owned = source in self._slot_of.values()
        is_whole = num_shared == len(self._prefixes[source].token_ids)
        slot = source if is_whole and not is_owned else self._take_clear(spare=source)
        if slot == source:
            self._clear(slot, num_shared)
            return slot
        self._keys[:, slot, :, :num_shared] = self._keys[:, source, :, :num_shared]
        self._values[:, slot, :, :num_shared] = self._values[:, source, :, :num_shared]
        self._touch(slot, num_shared)
        return slot

    def _touch(self, slot: int, num_positions: int) -> None:
        self._num_touched[slot] = max(self._num_touched[slot], num_positions)

    def _clear(self, slot: int, start: int) -> None:
        """Zero what was written from position `start` on."""
        stop = self._num_touched[slot]
        if start < stop:
            self._keys[:, slot, :, start:stop].zero_()
            self._values[:, slot, :, start:stop].zero_()
            self._num_touched[slot] = start
