"""The kept table of grams: whatever happens, the next text finds it empty."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

from hilora.character_grams import NUM_GRAMS
from hilora.gram_table import gram_table


def _nonzero(ids: list[int], numbers: list[float], *, dtype: type = np.float64) -> dict[int, float]:
    with gram_table(np.array(ids, dtype=np.uint16), np.array(numbers, dtype=dtype)) as table_G:
        return {int(place): float(table_G[place]) for place in np.flatnonzero(table_G)}


def test_it_holds_the_numbers_of_one_text_after_the_other() -> None:
    assert _nonzero([3, 65_535], [1.5, 2.0]) == {3: 1.5, 65_535: 2.0}
    assert _nonzero([4], [0.5]) == {4: 0.5}
    assert _nonzero([], []) == {}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_each_type_has_a_table(dtype: type) -> None:
    with gram_table(np.array([1], dtype=np.uint16), np.array([2.0], dtype=dtype)) as table_G:
        assert table_G.dtype == dtype
        assert table_G.shape == (NUM_GRAMS,)


def test_it_is_the_same_memory_again() -> None:
    ids, ones = np.array([7], dtype=np.uint16), np.ones(1)
    with gram_table(ids, ones) as first_G:
        address = first_G.ctypes.data
    with gram_table(ids, ones) as second_G:
        assert second_G.ctypes.data == address


def test_a_block_within_a_block_does_not_see_the_outer_one() -> None:
    with gram_table(np.array([1, 2], dtype=np.uint16), np.ones(2)) as outer_G:
        assert _nonzero([2], [9.0]) == {2: 9.0}
        assert outer_G[1] == outer_G[2] == 1.0
    assert _nonzero([], []) == {}


def test_a_block_that_fails_leaves_nothing_behind() -> None:
    with (
        pytest.raises(RuntimeError, match="in the middle"),
        gram_table(np.array([5], dtype=np.uint16), np.ones(1)),
    ):
        raise RuntimeError("in the middle")
    assert _nonzero([], []) == {}


def test_threads_do_not_share_it() -> None:
    both_are_inside = Barrier(2, timeout=10)

    def look(place: int) -> dict[int, float]:
        with gram_table(np.array([place], dtype=np.uint16), np.ones(1)) as table_G:
            both_are_inside.wait()
            found = {int(one): float(table_G[one]) for one in np.flatnonzero(table_G)}
            both_are_inside.wait()
            return found

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(look, [10, 20])) == [{10: 1.0}, {20: 1.0}]
