"""The tensors behind the rows of one arena: two ways to have as many rows as are needed, and no more.

`ReservedStorage`, for the CPU: address space for all rows that could ever be needed, once; a page costs memory from its
first write on, and can be given back. The tensors never change.

`GrowingStorage`, for a GPU, and where address space is rationed: tensors of the present height, replaced by other ones
when it changes. The copy is on the device; while it runs, one arena is there twice.

Shapes: N rows of an arena, R rows of one adapter, D in-features, O out-features.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from hilora.adapter import RankOneComponents
from services.worker.lora.pool.host_memory import PageBuffer, copy_serially

_NORM_ELEMENTS = 32_767
"""Larger reductions would wake torch's thread team."""
_STAGING_BYTES = 16 << 20
"""What one transfer to a device carries; page-locked while it lasts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RocArena:
    """Rows of ROCs of one shape. Row 0 is zero: tables pad with it."""

    a_ND: torch.Tensor
    b_NO: torch.Tensor
    b_norms_N: torch.Tensor
    """Euclidean norm of each row of `b`, for the contribution score."""


class ArenaStorage(Protocol):
    """What both ways offer."""

    @property
    def arena(self) -> RocArena:
        """The tensors as they are now."""
        ...

    @property
    def height(self) -> int:
        """Rows that can be written, row 0 included."""
        ...

    @property
    def num_backed_rows(self) -> int:
        """Rows that memory is really spent on, row 0 excluded."""
        ...

    def back(self, rows: np.ndarray) -> None:
        """Note that rows are about to be written."""
        ...

    def discard(self, rows: np.ndarray) -> int:
        """Give the memory of ascending rows that nobody has back to the system; returns the bytes."""
        ...

    def resize(self, height: int, moved_to: np.ndarray | None) -> None:
        """Replace the tensors by others of that height.

        Args:
            height: the new one, row 0 included.
            moved_to: the new row of each old one, 0 for rows that are dropped; None: rows stay where they are.

        Raises:
            torch.OutOfMemoryError: some of the tensors may have been replaced. If rows stay where they are, all of them
                can be used as before, and this may be tried again.
        """
        ...

    def write(self, rows: np.ndarray, parts: Sequence[RankOneComponents]) -> None:
        """Copy components into rows that nobody reads yet: `rows` has one for each component of each part, in order.
        Returns when they are written."""
        ...


class ReservedStorage:
    """See the module's head.

    Args:
        in_features: D.
        out_features: O.
        max_height: rows that can ever be needed, row 0 included.
        dtype: of the rows.

    Raises:
        OSError: the process may not have that much address space.
    """

    def __init__(self, *, in_features: int, out_features: int, max_height: int, dtype: torch.dtype) -> None:
        self._a = PageBuffer(max_height * in_features, dtype)
        self._b = PageBuffer(max_height * out_features, dtype)
        self._widths = (in_features, out_features)
        self._is_backed = np.zeros(max_height, dtype=bool)
        self._num_backed_rows = 0
        self._arena = RocArena(
            a_ND=self._a.tensor.view(max_height, in_features),
            b_NO=self._b.tensor.view(max_height, out_features),
            b_norms_N=PageBuffer(max_height, dtype).tensor,
        )

    @property
    def arena(self) -> RocArena:
        """See `ArenaStorage`."""
        return self._arena

    @property
    def height(self) -> int:
        """See `ArenaStorage`."""
        return len(self._is_backed)

    @property
    def num_backed_rows(self) -> int:
        """See `ArenaStorage`."""
        return self._num_backed_rows

    def back(self, rows: np.ndarray) -> None:
        """See `ArenaStorage`."""
        self._num_backed_rows += int((~self._is_backed[rows]).sum())
        self._is_backed[rows] = True

    def discard(self, rows: np.ndarray) -> int:
        """See `ArenaStorage`."""
        backed = rows[self._is_backed[rows]]
        self._is_backed[backed] = False
        self._num_backed_rows -= len(backed)
        num_bytes = 0
        for start, stop in _runs(backed):
            for buffer, width in zip((self._a, self._b), self._widths, strict=True):
                num_bytes += buffer.discard(*self._own_pages(int(backed[start]), int(backed[stop - 1]) + 1, width))
        return num_bytes

    def _own_pages(self, first: int, last: int, width: int) -> tuple[int, int]:
        """Elements of the rows `first` to `last` (exclusive), and what is left of their pages where that belongs to
        rows that were given up before: the pages between adapters that leave one after another would stay for ever."""
        page = mmap.PAGESIZE // self._arena.a_ND.itemsize
        rows_per_page = -(-page // width)
        below = np.flatnonzero(self._is_backed[max(0, first - rows_per_page) : first][::-1])
        above = np.flatnonzero(self._is_backed[last : last + rows_per_page])
        num_below = int(below[0]) if len(below) else min(first, rows_per_page)
        num_above = int(above[0]) if len(above) else min(self.height - last, rows_per_page)
        start = max((first - num_below) * width, first * width // page * page)
        return start, min((last + num_above) * width, -(-last * width // page) * page)

    def resize(self, height: int, moved_to: np.ndarray | None) -> None:
        """See `ArenaStorage`; never needed, all rows are there."""
        assert moved_to is None, "rows of a reserved arena stay where they are"
        assert height <= self.height, "a reserved arena has all the rows it will ever need"

    def write(self, rows: np.ndarray, parts: Sequence[RankOneComponents]) -> None:
        """See `ArenaStorage`."""
        _write_in_host_memory(self._arena, rows, parts)


class GrowingStorage:
    """See the module's head.

    Args:
        in_features: D.
        out_features: O.
        dtype: of the rows.
        device: where they are.
    """

    def __init__(self, *, in_features: int, out_features: int, dtype: torch.dtype, device: torch.device) -> None:
        self._arena = RocArena(
            a_ND=torch.zeros(1, in_features, dtype=dtype, device=device),
            b_NO=torch.zeros(1, out_features, dtype=dtype, device=device),
            b_norms_N=torch.zeros(1, dtype=dtype, device=device),
        )
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def arena(self) -> RocArena:
        """See `ArenaStorage`."""
        return self._arena

    @property
    def height(self) -> int:
        """See `ArenaStorage`."""
        # All three are as high, unless memory ran out between them.
        return min(len(self._arena.a_ND), len(self._arena.b_NO), len(self._arena.b_norms_N))

    @property
    def num_backed_rows(self) -> int:
        """See `ArenaStorage`."""
        return max(len(self._arena.a_ND), len(self._arena.b_NO)) - 1

    def back(self, rows: np.ndarray) -> None:
        """See `ArenaStorage`; the tensors are there already."""
        assert not len(rows) or int(rows.max()) < self.height, "a row beyond the arena"

    def discard(self, rows: np.ndarray) -> int:  # noqa: ARG002 part of the protocol
        """See `ArenaStorage`; rows inside a tensor cannot be given back, `resize` can."""
        return 0

    def resize(self, height: int, moved_to: np.ndarray | None) -> None:
        """See `ArenaStorage`."""
        old_rows: torch.Tensor | None = None
        num_rows = min(height, self.height)
        if moved_to is not None:
            # Row 0 stays, and so does every row that has a new place; places are dense and ascending.
            kept = np.concatenate([[0], np.flatnonzero(moved_to)])
            old_rows = torch.from_numpy(kept).to(self._device)
            num_rows = len(kept)

        def resized(old: torch.Tensor) -> torch.Tensor:
            new = torch.empty(height, *old.shape[1:], dtype=old.dtype, device=old.device)
            if old_rows is None:
                new[:num_rows].copy_(old[:num_rows])
            else:
                torch.index_select(old, 0, old_rows, out=new[:num_rows])
            return new

        # One after the other, so that only one of them is there twice.
        a_ND = resized(self._arena.a_ND)
        self._arena = RocArena(a_ND=a_ND, b_NO=self._arena.b_NO, b_norms_N=self._arena.b_norms_N)
        b_NO = resized(self._arena.b_NO)
        self._arena = RocArena(a_ND=a_ND, b_NO=b_NO, b_norms_N=resized(self._arena.b_norms_N))

    def write(self, rows: np.ndarray, parts: Sequence[RankOneComponents]) -> None:
        """See `ArenaStorage`."""
        if self._stream is None:
            _write_in_host_memory(self._arena, rows, parts)
            return
        # A step that was cut short may still be reading what was in these rows.
        self._stream.wait_stream(torch.cuda.default_stream(self._device))
        with torch.cuda.stream(self._stream):
            first = 0
            for batch in _batches(parts, self._arena.a_ND.dtype):
                stop = first + sum(part.num_rocs for part in batch)
                self._transfer(rows[first:stop], batch)
                first = stop

    def _transfer(self, rows: np.ndarray, parts: Sequence[RankOneComponents]) -> None:
        assert self._stream is not None, "transfers have a stream of their own"
        arena = self._arena
        index = torch.from_numpy(rows.astype(np.int64)).to(self._device)
        a_RD = _staged([part.a_RD for part in parts], arena.a_ND.dtype).to(self._device, non_blocking=True)
        arena.a_ND.index_copy_(0, index, a_RD)
        b_RO = _staged([part.b_RO for part in parts], arena.b_NO.dtype).to(self._device, non_blocking=True)
        arena.b_NO.index_copy_(0, index, b_RO)
        norms_R = torch.linalg.vector_norm(b_RO, dim=1, dtype=_norm_dtype(b_RO.dtype))
        arena.b_norms_N.index_copy_(0, index, norms_R.to(arena.b_norms_N.dtype))
        # Staging memory may be reused, and the rows read, only once this has happened.
        self._stream.synchronize()


def _write_in_host_memory(arena: RocArena, rows: np.ndarray, parts: Sequence[RankOneComponents]) -> None:
    first = 0
    for part in parts:
        part_rows = rows[first : first + part.num_rocs]
        first += part.num_rocs
        norms_R = _norms_of(part.b_RO, arena.b_norms_N.dtype)
        for start, stop in _runs(part_rows):
            target = slice(int(part_rows[start]), int(part_rows[stop - 1]) + 1)
            copy_serially(arena.a_ND[target], part.a_RD[start:stop])
            copy_serially(arena.b_NO[target], part.b_RO[start:stop])
            arena.b_norms_N[target].copy_(norms_R[start:stop])


def _norms_of(b_RO: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if b_RO.dtype is dtype and dtype.itemsize >= torch.float32.itemsize:
        values = b_RO.numpy()
        return torch.from_numpy(np.sqrt(np.einsum("ro,ro->r", values, values)))
    num_rows = max(1, _NORM_ELEMENTS // b_RO.shape[1])
    norms = [torch.linalg.vector_norm(rows, dim=1, dtype=_norm_dtype(dtype)) for rows in b_RO.split(num_rows)]
    return torch.cat(norms).to(dtype)


def _norm_dtype(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype.itemsize >= torch.float32.itemsize else torch.float32


def _staged(tensors: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """The rows of several matrices, one below the other, in page-locked memory."""
    num_rows = sum(map(len, tensors))
    staged = torch.empty(num_rows, tensors[0].shape[1], dtype=dtype, pin_memory=True)
    first = 0
    for tensor in tensors:
        copy_serially(staged[first : first + len(tensor)], tensor)
        first += len(tensor)
    return staged


def _batches(parts: Sequence[RankOneComponents], dtype: torch.dtype) -> Iterator[list[RankOneComponents]]:
    batch: list[RankOneComponents] = []
    num_bytes = 0
    for part in parts:
        part_bytes = (part.a_RD.numel() + part.b_RO.numel()) * dtype.itemsize
        if batch and num_bytes + part_bytes > _STAGING_BYTES:
            yield batch
            batch, num_bytes = [], 0
        batch.append(part)
        num_bytes += part_bytes
    if batch:
        yield batch


def _runs(rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """Places of `rows`, start and exclusive stop, between which they count up by one."""
    if len(rows) == 0:
        return
    breaks = (np.flatnonzero(rows[1:] - rows[:-1] != 1) + 1).tolist()
    yield from zip([0, *breaks], [*breaks, len(rows)], strict=True)
