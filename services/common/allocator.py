"""What glibc's allocator is asked for by processes that hold much and run long."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_ARENA_MAX = -8
"""Names of `mallopt(3)`."""

_NUM_ARENAS = 2
_LARGE_BYTES = 1024 * 1024

_BY_OPERATOR = ("MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def give_back_freed_memory() -> bool:
    """Have freed memory leave this process; to be called before it starts threads.

    By default glibc gives every thread an arena that never shrinks below the most it held at once, and after the first
    large array has gone it takes arrays of up to 32 MiB from arenas as well. A router that has fitted ten thousand
    adapters kept some 80 MB of nothing. Here arrays of a mebibyte and more are mappings of their own, and threads share
    two arenas: under the interpreter's lock they seldom want one at the same time.

    Returns:
        Whether it was done: not without glibc, and not where the operator has set the allocator by environment.
    """
    # Read as glibc reads it: these are its settings, not ours.
    if not sys.platform.startswith("linux") or any(os.getenv(name) is not None for name in _BY_OPERATOR):  # noqa: TID251
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = ((_ARENA_MAX, _NUM_ARENAS), (_MMAP_THRESHOLD, _LARGE_BYTES), (_TRIM_THRESHOLD, _LARGE_BYTES))
    return all(mallopt(name, value) == 1 for name, value in wanted)
