"""Attention over contiguous slots: keys and values are read in place.

Shapes: T packed tokens of a step, N cache slots, B decode tokens, H query heads, K key-value heads, G = H / K,
L positions of a slot, D head dimension, S slots one product reads.

Decode tokens attend by the CPU kernel where it can, each over its own slot and length. Elsewhere they are taken
together in runs of neighbouring slots (`split_runs`), each one padded product over a slice of the cache. A prefill
chunk attends by itself to its own slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from services.worker.kernels.native_ops import can_attend, decode_attention
from services.worker.models.attention_product import AttentionRule, attention_product, position_bias, split_runs


class SlotStore(Protocol):
    """Where keys and values of all positions live."""

    def keys(self, layer_idx: int) -> torch.Tensor:
        """Keys of a layer `[N, K, L, D]`, contiguous, written in place."""
        ...

    def values(self, layer_idx: int) -> torch.Tensor:
        """Values of a layer `[N, K, L, D]`, contiguous, written in place."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotChunk:
    """Consecutive prompt tokens of one request."""

    row: int
    """Its first row among the step's packed tokens."""
    num_tokens: int
    slot: int
    start: int
    """Position of its first token; everything before is in the cache."""

    @property
    def stop(self) -> int:
        """One past the position of its last token."""
        return self.start + self.num_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """Slots `first_slot .. first_slot + num_slots - 1`, of which some decode."""

    first_slot: int
    last: torch.Tensor
    """`[S]`: position of the slot's token; the shortest of all where the slot does not decode."""
    is_even: bool
    """Whether all slots decode at one position, so that nothing is hidden."""
    shortest: int
    longest: int
    """Positions that are seen by the tokens with the fewest and with the most."""

    @property
    def slots(self) -> slice:
        """The slots that are read."""
        return slice(self.first_slot, self.first_slot + int(self.last.shape[0]))


class SlotAttentionStep:
    """One step over slots.

    Args:
        store: the cache.
        slots: slot of each decode token, distinct; the tokens are the first rows.
        positions: position of each decode token in its sequence.
        chunks: the prefill chunks, which are the other rows.
        device: of the model.
    """

    def __init__(
        self,
        store: SlotStore,
        *,
        slots: Sequence[int],
        positions: Sequence[int],
        chunks: Sequence[SlotChunk],
        device: torch.device,
    ) -> None:
        self._store = store
        self._chunks = tuple(chunks)
        self._device = device
        self._num_decodes = len(slots)
        self._biases: dict[tuple[int, int, int, torch.dtype], torch.Tensor] = {}
        self._write_rows: torch.Tensor | None = None
        self._slots, self._positions = list(slots), list(positions)
        self._runs: tuple[_Run, ...] = ()
        self._row_of_place: torch.Tensor | None = None
        self._place_of_row: torch.Tensor | None = None
        self._is_planned = False
        self._slots_B = torch.tensor(self._slots, dtype=torch.int64)
        self._until_B = torch.tensor(self._positions, dtype=torch.int64) + 1

    def attend(
        self, layer_idx: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rule: AttentionRule
    ) -> torch.Tensor:
        """Write the step's keys `[K, T, D]` and values, attend with the query `[H, T, D]`: `[T, H, D]`."""
        keys, values = self._store.keys(layer_idx), self._store.values(layer_idx)
        size = self._num_decodes
        decoded = None
        if size:
            self._write(keys, key[:, :size])
            self._write(values, value[:, :size])
            decoded = self._attend_decodes(query[:, :size].transpose(0, 1), keys, values, rule)
            if not self._chunks:
                return decoded
        out = query.new_empty(query.shape[1], query.shape[0], query.shape[2])
        if decoded is not None:
            out[:size] = decoded
        for chunk in self._chunks:
            rows = slice(chunk.row, chunk.row + chunk.num_tokens)
            keys[chunk.slot, :, chunk.start : chunk.stop] = key[:, rows]
            values[chunk.slot, :, chunk.start : chunk.stop] = value[:, rows]
            out[rows] = self._attend_chunk(chunk, query[:, rows], keys, values, rule).transpose(0, 1)
        return out

    def _plan_runs(self) -> None:
        order = sorted(range(len(self._slots)), key=self._slots.__getitem__)
        slots = [self._slots[row] for row in order]
        lengths = [self._positions[row] + 1 for row in order]
        runs: list[_Run] = []
        row_of_place: list[int] = []
        place_of_row = [0] * len(order)
        for part in split_runs(slots, lengths):
            first_slot, num_slots = slots[part.start], slots[part.stop - 1] - slots[part.start] + 1
            shortest, longest = min(lengths[part]), max(lengths[part])
            # A slot in the range that does not decode borrows a row: a product without a visible position is NaN.
            last = [shortest - 1] * num_slots
            rows = [order[part.start]] * num_slots
            for slot, length, row in zip(slots[part], lengths[part], order[part], strict=True):
                last[slot - first_slot] = length - 1
                rows[slot - first_slot] = row
                place_of_row[row] = len(row_of_place) + slot - first_slot
            row_of_place.extend(rows)
            runs.append(
                _Run(
                    first_slot=first_slot,
                    last=torch.tensor(last, dtype=torch.int64, device=self._device),
                    is_even=shortest == longest,
                    shortest=shortest,
                    longest=longest,
                )
            )
        self._runs = tuple(runs)
        if row_of_place != list(range(len(order))):
            self._row_of_place = torch.tensor(row_of_place, dtype=torch.int64, device=self._device)
            self._place_of_row = torch.tensor(place_of_row, dtype=torch.int64, device=self._device)

    def _write(self, cache: torch.Tensor, new_KBD: torch.Tensor) -> None:
        """Decode tokens into their slots. Slot, head and position are one index of rows, which is the fastest write."""
        if self._write_rows is None:
            _, num_heads, max_len, _ = cache.shape
            slots = torch.tensor(self._slots, dtype=torch.int64)
            heads = torch.arange(num_heads)
            positions = torch.tensor(self._positions, dtype=torch.int64)
            rows_KB = (slots[None, :] * num_heads + heads[:, None]) * max_len + positions[None, :]
            self._write_rows = rows_KB.flatten().to(self._device)
        head_dim = cache.shape[-1]
        cache.view(-1, head_dim).index_copy_(0, self._write_rows, new_KBD.reshape(-1, head_dim))

    def _attend_decodes(
        self, query_BHD: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rule: AttentionRule
    ) -> torch.Tensor:
        if can_attend(keys):
            reach = self._until_B if rule.window is None else self._until_B.clamp(max=rule.window)
            return decode_attention(
                query_BHD,
                keys,
                values,
                slots_B=self._slots_B,
                first_B=self._until_B - reach,
                until_B=self._until_B,
                scaling=rule.scaling,
                softcap=rule.softcap,
            )
        return self._attend_runs(query_BHD, keys, values, rule)

    def _attend_runs(
        self, query_BHD: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rule: AttentionRule
    ) -> torch.Tensor:
        """The G heads that share a key are queries of one product."""
        if not self._is_planned:
            self._plan_runs()
            self._is_planned = True
        _, num_heads, head_dim = query_BHD.shape
        if self._row_of_place is not None:
            query_BHD = query_BHD.index_select(0, self._row_of_place)
        query = query_BHD.reshape(query_BHD.shape[0], keys.shape[1], -1, head_dim)
        parts: list[torch.Tensor] = []
        begin = 0
        for run in self._runs:
            num_slots = int(run.last.shape[0])
            first = 0 if rule.window is None else max(0, run.shortest - rule.window)
            parts.append(
                attention_product(
                    query[begin : begin + num_slots],
                    keys[run.slots, :, first : run.longest],
                    values[run.slots, :, first : run.longest],
                    rule,
                    bias=self._run_bias(run, first, rule.window, query.dtype),
                )
            )
            begin += num_slots
        out = (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(-1, num_heads, head_dim)
        return out if self._place_of_row is None else out.index_select(0, self._place_of_row)

    def _run_bias(self, run: _Run, first: int, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """`[S, 1, 1, L]` of what a run reads, or None if every token sees all of it."""
        if run.is_even:
            return None
        key = (-1 - run.first_slot, first, window or 0, dtype)
        if key not in self._biases:
            bias = position_bias(run.last, first=first, stop=run.longest, window=window, dtype=dtype)
            self._biases[key] = bias[:, None, None, :]
        return self._biases[key]

    def _attend_chunk(
        self, chunk: SlotChunk, query_HnD: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rule: AttentionRule
    ) -> torch.Tensor:
        """A chunk's tokens against their own slot: `[H, n, D]`."""
        window = None if rule.window is None or chunk.stop <= rule.window else rule.window
        first = 0 if window is None else max(0, chunk.start - window + 1)
        is_causal = chunk.start == 0 and window is None and rule.softcap is None
        return attention_product(
            query_HnD[None],
            keys[chunk.slot, None, :, first : chunk.stop],
            values[chunk.slot, None, :, first : chunk.stop],
            rule,
            bias=None if is_causal else self._chunk_bias(chunk, first, window, query_HnD.dtype),
            is_causal=is_causal,
        )[0]

    def _chunk_bias(self, chunk: SlotChunk, first: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """`[n, L]` over positions `first .. chunk.stop - 1`."""
        key = (chunk.row, first, window or 0, dtype)
        if key not in self._biases:
            last = torch.arange(chunk.start, chunk.stop, device=self._device)
            self._biases[key] = position_bias(last, first=first, stop=chunk.stop, window=window, dtype=dtype)
        return self._biases[key]
