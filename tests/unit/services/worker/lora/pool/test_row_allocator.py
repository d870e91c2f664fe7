from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from services.worker.lora.pool.row_allocator import RowAllocator


class TestRowAllocator:
    def test_what_was_freed_last_is_handed_out_first(self) -> None:
        rows = RowAllocator()
        first, second = rows.take(3), rows.take(4)
        assert (first.tolist(), second.tolist()) == ([1, 2, 3], [4, 5, 6, 7])
        rows.give_back(first)
        assert rows.height_with(3) == rows.height == 8
        assert rows.take(3).tolist() == [1, 2, 3]
        assert rows.take(1).tolist() == [8]

    def test_compacting_moves_used_rows_down_in_their_order(self) -> None:
        rows = RowAllocator()
        kept = rows.take(2), rows.take(2), rows.take(2)
        rows.give_back(kept[0])
        moved_to = rows.compact()
        assert moved_to.tolist() == [0, 0, 0, 1, 2, 3, 4]
        assert (rows.height, rows.num_used) == (5, 4)
        rows.check_integrity(moved_to[np.concatenate(kept[1:])])

    @given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, 90)), max_size=30))
    def test_no_row_is_lost_or_held_twice(self, steps) -> None:
        rows, held = RowAllocator(), list[np.ndarray]()
        for must_take, number in steps:
            if must_take:
                height = rows.height_with(number)
                held.append(rows.take(number))
                assert rows.height == height
            elif held:
                rows.give_back(held.pop(number % len(held)))
            rows.check_integrity(np.concatenate([np.empty(0, dtype=np.int64), *held]))
            assert rows.num_used == sum(map(len, held))
