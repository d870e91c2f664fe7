"""The tensors of the ROC pool: one arena of rows per linear layer.

Shapes: N rows of an arena, D in-features, O out-features.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hilora.adapter import DecomposedAdapter
from hilora.errors import AdapterShapeMismatch


@dataclass(frozen=True, kw_only=True, slots=True)
class ModuleShape:
    """A linear layer that ROCs can be added to."""

    module_path: str
    in_features: int
    out_features: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RocArena:
    """The rows of one module. Row 0 is zero: tables pad with it."""

    a_ND: torch.Tensor
    b_NO: torch.Tensor
    b_norms_N: torch.Tensor
    """Euclidean norm of each row of `b`, for the contribution score."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComponentSizes:
    """What an adapter's components occupy."""

    num_rows: int
    num_bytes: int
    module_ranks: tuple[int, ...]
    """ROCs in each module, by module index; 0 where the adapter has none."""


class RocArenas:
    """Arenas of one model, each made when the first adapter targets its module. May be used from any thread.

    Args:
        modules: the linear layers of the model; their order gives the module indices.
        capacity_bytes: what all rows together may occupy; decides how many there are.
        dtype: of the rows: the model's.
        device: the model's.
    """

    def __init__(
        self, *, modules: Sequence[ModuleShape], capacity_bytes: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        if not modules:
            raise ValueError("a pool needs at least one module")
        self._modules = tuple(modules)
        self._module_idx = {shape.module_path: idx for idx, shape in enumerate(self._modules)}
        self._dtype = dtype
        self._device = device
        # A row is budgeted as one ROC in all modules but the widest: that one is usually the output embedding, which
        # few adapters target, and counting it would leave most of the capacity without rows.
        sizes = sorted(self._row_bytes(shape) for shape in self._modules)
        self.num_rows = max(1, capacity_bytes // (sum(sizes[:-1]) or sizes[-1]))
        self._arenas: list[RocArena | None] = [None] * len(self._modules)
        self._lock = threading.Lock()

    @property
    def num_modules(self) -> int:
        """Number of linear layers."""
        return len(self._modules)

    def arena(self, module_idx: int) -> RocArena:
        """The rows of a module that a written adapter targets."""
        arena = self._arenas[module_idx]
        assert arena is not None, "no adapter targets this module"
        return arena

    def sizes_of(self, adapter: DecomposedAdapter, *, adapter_id: str) -> ComponentSizes:
        """What the adapter will occupy.

        Raises:
            AdapterShapeMismatch: it does not fit the model: unknown module, or wrong widths.
        """
        ranks = [0] * len(self._modules)
        num_bytes = 0
        for module_path, rocs in adapter.modules.items():
            idx = self._module_idx.get(module_path)
            if idx is None:
                raise AdapterShapeMismatch(
                    f"{adapter_id} targets {module_path}, which the base model does not have as a linear layer.",
                    code="unknown_target_module",
                    remedy="Register the adapter against the base model that this worker serves.",
                    place=module_path,
                )
            shape = self._modules[idx]
            found = (tuple(rocs.a_RD.shape), tuple(rocs.b_RO.shape))
            expected = ((rocs.num_rocs, shape.in_features), (rocs.num_rocs, shape.out_features))
            if found != expected:
                raise AdapterShapeMismatch(
                    f"{adapter_id} has components of shapes {found} for {module_path}, which needs {expected}.",
                    remedy="Register the adapter against the base model that this worker serves.",
                    place=module_path,
                )
            ranks[idx] = rocs.num_rocs
            num_bytes += rocs.num_rocs * self._row_bytes(shape)
        return ComponentSizes(num_rows=max(ranks, default=0), num_bytes=num_bytes, module_ranks=tuple(ranks))

    def write(self, rows: Sequence[int], adapter: DecomposedAdapter) -> None:
        """Copy components into rows that nobody reads yet; a module of rank r uses the first r of them."""
        index = torch.tensor(rows, dtype=torch.int64, device=self._device)
        for module_path, rocs in adapter.modules.items():
            arena = self._made_arena(self._module_idx[module_path])
            module_index = index[: rocs.num_rocs]
            a_RD = rocs.a_RD.to(device=self._device, dtype=self._dtype)
            b_RO = rocs.b_RO.to(device=self._device, dtype=self._dtype)
            norms_R = torch.linalg.vector_norm(rocs.b_RO, dim=1).to(device=self._device, dtype=self._dtype)
            arena.a_ND.index_copy_(0, module_index, a_RD)
            arena.b_NO.index_copy_(0, module_index, b_RO)
            arena.b_norms_N.index_copy_(0, module_index, norms_R)

    def check_integrity(self) -> None:
        """AssertionError unless the padding row of every arena is zero."""
        for arena in self._arenas:
            assert arena is None or not (arena.a_ND[0].any() or arena.b_NO[0].any()), "row 0 is not zero"

    def _row_bytes(self, shape: ModuleShape) -> int:
        return (shape.in_features + shape.out_features + 1) * self._dtype.itemsize

    def _made_arena(self, module_idx: int) -> RocArena:
        with self._lock:
            arena = self._arenas[module_idx]
            if arena is None:
                shape, height = self._modules[module_idx], self.num_rows + 1
                # Not zeroed as a whole: on the CPU untouched rows then cost no memory.
                arena = RocArena(
                    a_ND=torch.empty(height, shape.in_features, dtype=self._dtype, device=self._device),
                    b_NO=torch.empty(height, shape.out_features, dtype=self._dtype, device=self._device),
                    b_norms_N=torch.zeros(height, dtype=self._dtype, device=self._device),
                )
                arena.a_ND[0] = 0
                arena.b_NO[0] = 0
                self._arenas[module_idx] = arena
            return arena
