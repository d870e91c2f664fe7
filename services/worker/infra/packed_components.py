"""An adapter's components as one run of memory: what the host tier holds.

A model has hundreds of modules, and a tensor of its own costs about a kilobyte beside its data; for a small adapter
that is a noticeable share. One run also goes back to the system as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

import torch

from hilora.adapter import DecomposedAdapter, RankOneComponents, RocBasis
from services.worker.lora.pool.host_memory import PageBuffer, copy_serially

_Places = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Layout:
    """What a run of memory contains. An object, as a tuple cannot be known without being kept."""

    places: _Places
    """Module path, R, D and O, in the order of the data."""


Layouts = WeakValueDictionary[_Places, Layout]
"""Layouts that somebody has. Whoever changes it holds a lock."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedComponents:
    """Components in one type, module after module, `a` before `b`."""

    basis: RocBasis
    layout: Layout
    data: torch.Tensor

    @property
    def num_bytes(self) -> int:
        """Bytes of the data."""
        return self.data.nbytes

    def sharing(self, layouts: Layouts) -> PackedComponents:
        """The same with the layout that others of its kind have; a new one is added."""
        return replace(self, layout=layouts.setdefault(self.layout.places, self.layout))

    def unpacked(self) -> DecomposedAdapter:
        """The components as views of the data; nobody may write to them."""
        modules: dict[str, RankOneComponents] = {}
        start = 0
        for module_path, num_rocs, in_features, out_features in self.layout.places:
            middle = start + num_rocs * in_features
            stop = middle + num_rocs * out_features
            modules[module_path] = RankOneComponents(
                a_RD=self.data[start:middle].view(num_rocs, in_features),
                b_RO=self.data[middle:stop].view(num_rocs, out_features),
            )
            start = stop
        return DecomposedAdapter(basis=self.basis, modules=modules)


def packed_bytes(adapter: DecomposedAdapter, dtype: torch.dtype | None) -> int:
    """Bytes that an adapter takes when packed."""
    num_elements = sum(rocs.a_RD.numel() + rocs.b_RO.numel() for rocs in adapter.modules.values())
    return num_elements * _dtype_of(adapter, dtype).itemsize


def packed(adapter: DecomposedAdapter, dtype: torch.dtype | None) -> PackedComponents:
    """Copy an adapter into memory of its own.

    Args:
        adapter: its components.
        dtype: what to keep them in; None keeps the type they have.
    """
    num_elements = sum(rocs.a_RD.numel() + rocs.b_RO.numel() for rocs in adapter.modules.values())
    data = PageBuffer(num_elements, _dtype_of(adapter, dtype)).tensor
    start = 0
    for rocs in adapter.modules.values():
        for tensor in (rocs.a_RD, rocs.b_RO):
            copy_serially(data[start : start + tensor.numel()], tensor)
            start += tensor.numel()
    places = tuple(
        (module_path, rocs.num_rocs, rocs.a_RD.shape[1], rocs.b_RO.shape[1])
        for module_path, rocs in adapter.modules.items()
    )
    return PackedComponents(basis=adapter.basis, layout=Layout(places), data=data)


def _dtype_of(adapter: DecomposedAdapter, dtype: torch.dtype | None) -> torch.dtype:
    return dtype or next((rocs.a_RD.dtype for rocs in adapter.modules.values()), torch.float32)
