"""A number for every gram there is, 0 for all but some: looked up by the tens of thousands for each text.

A table of its own for every text would be half a megabyte of fresh memory to clear. So each thread keeps one and clears
what it wrote.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hilora.character_grams import NUM_GRAMS, GramIds

NumberT = TypeVar("NumberT", bound=np.floating[Any])

_kept = threading.local()


@contextmanager
def gram_table(ids_G: GramIds, numbers_G: NDArray[NumberT]) -> Iterator[NDArray[NumberT]]:
    """The table, `[NUM_GRAMS]`, to be read until the block ends.

    Args:
        ids_G: the grams that have a number.
        numbers_G: their numbers; the table is of their type.
    """
    tables: dict[str, NDArray[Any]] = _kept.__dict__
    kind = numbers_G.dtype.char
    # Taken out while it is in use: a block within a block gets another one.
    table = tables.pop(kind, None)
    if table is None:
        table = np.zeros(NUM_GRAMS, dtype=numbers_G.dtype)
    table[ids_G] = numbers_G
    try:
        yield table
    finally:
        table[ids_G] = 0.0
        tables[kind] = table
