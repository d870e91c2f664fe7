"""Keys and values of running requests in contiguous slots.

Shapes: N slots, H key-value heads, L positions of a slot (`max_model_len`), D head dimension.

A slot belongs to one request from admission to its end. Contiguous slots need no gathering before attention; another
layout (pages) can stand behind the same methods.
"""

from __future__ import annotations

import heapq

import torch


class SlotKvCache:
    """`num_slots` slots of `max_len` positions in every layer.

    Args:
        num_layers: decoder layers of the model.
        num_slots: requests at once.
        num_heads: key-value heads of a layer.
        max_len: positions of a slot.
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
        self._free = list(range(num_slots))
        self._owners: dict[int, str] = {}
        self._num_slots = num_slots

    @property
    def num_free(self) -> int:
        """Slots that can be allocated."""
        return len(self._free)

    @property
    def usage(self) -> float:
        """Share of the slots in use, 0 to 1."""
        return len(self._owners) / self._num_slots

    @property
    def owners(self) -> frozenset[str]:
        """Request ids that hold a slot."""
        return frozenset(self._owners.values())

    def keys(self, layer_idx: int) -> torch.Tensor:
        """Keys of a layer `[N, H, L, D]`, to be read and written in place."""
        return self._keys[layer_idx]

    def values(self, layer_idx: int) -> torch.Tensor:
        """Values of a layer `[N, H, L, D]`, to be read and written in place."""
        return self._values[layer_idx]

    def allocate(self, owner: str) -> int:
        """Take the lowest free slot: low slots stay dense, so that attention reads one slice of the cache.

        Raises:
            ValueError: no slot is free; ask `num_free` first.
        """
        if not self._free:
            raise ValueError("no free slot")
        slot = heapq.heappop(self._free)
        self._owners[slot] = owner
        return slot

    def free(self, slot: int, *, num_written: int) -> None:
        """Give a slot back and clear the positions that were written.

        Cleared because the next owner's masked positions must be finite, and because one request's values have no
        business in another one's memory.
        """
        del self._owners[slot]
        self._keys[:, slot, :, :num_written].zero_()
        self._values[:, slot, :, :num_written].zero_()
        heapq.heappush(self._free, slot)

    def check_integrity(self) -> None:
        """AssertionError unless every slot is either free or owned, once, and free slots are clear."""
        assert len(set(self._free)) == len(self._free), "a slot is free twice"
        assert set(self._free).isdisjoint(self._owners), "a slot is free and owned"
        assert set(self._free) | set(self._owners) == set(range(self._num_slots)), "a slot is lost"
        assert len(set(self._owners.values())) == len(self._owners), "a request owns two slots"
        for slot in self._free:
            assert not self._keys[:, slot].any(), f"free slot {slot} still holds keys"
            assert not self._values[:, slot].any(), f"free slot {slot} still holds values"
