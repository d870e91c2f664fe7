"""A number for every gram there is, 0 for all but some: looked up by the tens of thousands for each text.

A table of its own for every text would be most of the work: half a megabyte of fresh memory to clear. So each thread
keeps one and clears what it wrote.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hilora.character_grams import NUM_GRAMS, GramIds

_kept = threading.local()


@contextmanager
def gram_table(ids_G: GramIds, numbers_G: NDArray[np.floating], *, dtype: DTypeLike) -> Iterator[NDArray[np.floating]]:
    """The table, `[NUM_GRAMS]`, to be read until the block ends.

    Args:
        ids_G: the grams that have a number.
        numbers_G: their numbers.
        dtype: of the table.
    """
    tables: dict[str, NDArray[np.floating]] = _kept.__dict__
    kind = np.dtype(dtype)
    # Taken out while it is in use: a block within a block gets another one.
    table = tables.pop(kind.char, None)
    if table is None:
        table = np.zeros(NUM_GRAMS, dtype=kind)
    table[ids_G] = numbers_G
    try:
        yield table
    finally:
        table[ids_G] = 0.0
        tables[kind.char] = table
