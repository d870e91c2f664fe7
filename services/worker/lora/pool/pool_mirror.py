"""Keeps the component pools of several processes alike.

One process leads: only it fetches components and decides what stays. Before a step whose plans need adapters that the
others lack, it tells them which ones come and which have gone (`MirrorChange`), and then gives them the values from its
own rows. The others hold a reference on everything they were told of, so that nothing leaves before the leader says so.
They have the same capacity, and never more in use than the leader: there is always room.

Shapes: R an adapter's components in a module, D in-features, O out-features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hilora.adapter import DecomposedAdapter, RankOneComponents
from services.worker.lora.pool.pool_entries import RocKey
from services.worker.lora.pool.roc_arena import ModuleShape
from services.worker.lora.pool.roc_pool import RocPool

ShareTensor = Callable[[torch.Tensor], None]
"""Gives the leader's values of a contiguous tensor to everybody, in place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrival:
    """An adapter whose values come next."""

    key: RocKey
    module_ranks: tuple[int, ...]
    """Its components in each module."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MirrorChange:
    """What the followers have to do before a step."""

    departures: tuple[RocKey, ...] = ()
    arrivals: tuple[Arrival, ...] = ()


class PoolLeader:
    """The side that decides.

    Args:
        pool: the leader's.
        modules: those of the model, in the order of their indices.
        dtype: of the rows.
        device: the model's.
    """

    def __init__(
        self, pool: RocPool, modules: Sequence[ModuleShape], *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._pool = pool
        self._modules = tuple(modules)
        self._dtype = dtype
        self._device = device
        self._mirrored: dict[RocKey, None] = {}

    def change_for(self, keys: Iterable[RocKey]) -> MirrorChange:
        """What the followers lack of adapters that are committed here, and what they hold in vain."""
        departures = tuple(key for key in self._mirrored if not self._pool.is_known(key))
        arrivals = tuple(
            Arrival(key=key, module_ranks=self._pool.module_ranks(key)) for key in keys if key not in self._mirrored
        )
        return MirrorChange(departures=departures, arrivals=arrivals)

    def enact(self, change: MirrorChange, share: ShareTensor) -> None:
        """Give the followers the values; they have been told of the change."""
        for key in change.departures:
            del self._mirrored[key]
        for arrival in change.arrivals:
            values = _empty_values(arrival, self._modules, dtype=self._dtype, device=self._device)
            table = self._pool.rows(arrival.key)
            for module_idx, a_RD, b_RO in _parts(values, arrival, self._modules):
                rows = torch.from_numpy(table.of_module(module_idx).astype(np.int64)).to(self._device)
                arena = self._pool.arena(module_idx)
                torch.index_select(arena.a_ND, 0, rows, out=a_RD)
                torch.index_select(arena.b_NO, 0, rows, out=b_RO)
            share(values)
            self._mirrored[arrival.key] = None


class PoolFollower:
    """The side that obeys.

    Args:
        pool: this process's; nobody else changes it.
        modules: those of the model, in the order of their indices.
        dtype: of the rows.
        device: the model's.
    """

    def __init__(
        self, pool: RocPool, modules: Sequence[ModuleShape], *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._pool = pool
        self._modules = tuple(modules)
        self._dtype = dtype
        self._device = device

    def enact(self, change: MirrorChange, share: ShareTensor) -> None:
        """Take the values, and let go of what the leader has no longer."""
        for key in change.departures:
            self._pool.release([key])
        for key in change.departures:
            # Without references, that is now; an adapter that is still there in another basis is kept by its reference.
            self._pool.retire(key.adapter_id)
        for arrival in change.arrivals:
            values = _empty_values(arrival, self._modules, dtype=self._dtype, device=self._device)
            share(values)
            self._pool.readmit(arrival.key.adapter_id)
            self._add(arrival, values.cpu())
        self._pool.trim()

    def _add(self, arrival: Arrival, values: torch.Tensor) -> None:
        key = arrival.key
        adapter = DecomposedAdapter(
            basis=key.basis,
            modules={
                self._modules[module_idx].module_path: RankOneComponents(a_RD=a_RD, b_RO=b_RO)
                for module_idx, a_RD, b_RO in _parts(values, arrival, self._modules)
            },
        )
        sizes = self._pool.sizes_of(adapter, adapter_id=key.adapter_id)
        is_placed = self._pool.try_acquire([key], {key: sizes})
        assert is_placed, "a follower has no room for what its leader has"
        if not self._pool.is_committed([key]):
            self._pool.write(key, adapter)
            self._pool.commit(key)


def _empty_values(
    arrival: Arrival, modules: Sequence[ModuleShape], *, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    num_elements = sum(
        rank * (shape.in_features + shape.out_features)
        for rank, shape in zip(arrival.module_ranks, modules, strict=True)
    )
    return torch.empty(num_elements, dtype=dtype, device=device)


def _parts(
    values: torch.Tensor, arrival: Arrival, modules: Sequence[ModuleShape]
) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    """Module index, `a` and `b` of each module that the adapter has components in, as views."""
    parts: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    first = 0
    for module_idx, (rank, shape) in enumerate(zip(arrival.module_ranks, modules, strict=True)):
        if rank == 0:
            continue
        middle = first + rank * shape.in_features
        stop = middle + rank * shape.out_features
        a_RD, b_RO = values[first:middle].view(rank, -1), values[middle:stop].view(rank, -1)
        parts.append((module_idx, a_RD, b_RO))
        first = stop
    return parts
