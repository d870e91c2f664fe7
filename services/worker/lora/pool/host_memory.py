"""Main memory in whole pages of our own: it costs nothing until it is written, and goes back when it is given up.

The C library's allocator keeps what is freed for its next caller, so that a process rarely shrinks. Components come and
go in megabytes; they get mappings of their own.
"""

from __future__ import annotations

import mmap

import numpy as np
import torch

_CHUNK_ELEMENTS = 32_767
"""torch hands larger element-wise operations to its thread team, which belongs to the forward pass."""


class PageBuffer:
    """A one-dimensional tensor in anonymous pages.

    Args:
        num_elements: its length; all zero at first.
        dtype: of its elements.

    Raises:
        OSError: the process may not have that much address space.
    """

    def __init__(self, num_elements: int, dtype: torch.dtype) -> None:
        num_bytes = max(1, num_elements * dtype.itemsize)
        # Room for the whole budget is mapped several times over; only what is written counts.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        self._pages = mmap.mmap(-1, num_bytes, flags=flags)
        self.tensor = torch.frombuffer(self._pages, dtype=dtype, count=num_elements)
        self._can_discard = hasattr(self._pages, "madvise") and hasattr(mmap, "MADV_DONTNEED")

    def discard(self, start: int, stop: int) -> int:
        """Give elements `start` to `stop` (exclusive) back to the system, in whole pages; they may then read as zero.

        Returns:
            The bytes that were given back; 0 where the platform cannot.
        """
        size, page = self.tensor.itemsize, mmap.PAGESIZE
        first = -(-start * size // page) * page
        length = stop * size // page * page - first
        if length <= 0 or not self._can_discard:
            return 0
        self._pages.madvise(mmap.MADV_DONTNEED, first, length)
        return length


def copy_serially(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy a tensor of as many elements, converting its type, on the calling thread alone, and without the
    interpreter's lock for most of the time: what runs beside it is the forward pass. Both are in main memory, the
    target contiguous."""
    source = source.contiguous()
    if target.dtype is source.dtype:
        # torch would take its thread team for this, too, at some size.
        np.copyto(_as_bytes(target), _as_bytes(source))
        return
    flat_target, flat_source = target.view(-1), source.view(-1)
    for start in range(0, len(flat_target), _CHUNK_ELEMENTS):
        chunk = slice(start, start + _CHUNK_ELEMENTS)
        flat_target[chunk].copy_(flat_source[chunk])


def _as_bytes(tensor: torch.Tensor) -> np.ndarray:
    """A flat view; numpy has no name for some of torch's types."""
    return tensor.view(-1).view(torch.uint8).numpy()
