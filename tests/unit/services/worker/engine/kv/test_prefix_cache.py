from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilora.routing_plan import RoutingPlan
from services.worker.engine.kv.prefix_cache import PagePrefixes, SlotPrefix, SlotPrefixes, prefix_key_of
from tests.builders.engine import make_plan

_tokens = st.lists(st.integers(0, 1), min_size=1, max_size=12)


class TestPrefixKey:
    def test_whatever_changes_the_arithmetic_changes_it(self) -> None:
        plan = make_plan(("a", 4, 2, 0.5), ("b", 4, 1, 0.5))
        others = [
            make_plan(("a", 4, 3, 0.5), ("b", 4, 1, 0.5)),
            make_plan(("a", 4, 2, 0.6), ("b", 4, 1, 0.5)),
            make_plan(("c", 4, 2, 0.5), ("b", 4, 1, 0.5)),
            make_plan(("a", 4, 2, 0.5)),
            make_plan(("a", 4, 2, 0.5), ("b", 4, 1, 0.5), eta=0.5),
            RoutingPlan(),
        ]
        keys = {prefix_key_of("rev", other) for other in (plan, *others)}
        assert len(keys) == len(others) + 1
        assert prefix_key_of("other rev", plan) not in keys

    def test_the_catalogue_does_not(self) -> None:
        plan = make_plan(("a", 4, 2, 0.5))
        assert prefix_key_of("rev", plan) == prefix_key_of("rev", replace(plan, catalog_generation=7))

    def test_plans_without_rocs_are_one(self) -> None:
        assert prefix_key_of("rev", make_plan(("a", 4, 0, 1.0))) == prefix_key_of("rev", RoutingPlan())


class TestSlotPrefixes:
    @given(own=_tokens, other=_tokens)
    def test_shared_tokens_are_the_longest_common_beginning_less_the_last(self, own, other) -> None:
        shared = SlotPrefix("p", tuple(own)).num_shared("p", other)
        assert shared < len(other)
        assert own[:shared] == other[:shared]
        assert shared == len(other) - 1 or own[shared : shared + 1] != other[shared : shared + 1]

    def test_another_key_shares_nothing(self) -> None:
        assert SlotPrefix("p", (1, 2, 3)).num_shared("q", (1, 2, 3, 4)) == 0

    def test_the_longest_match_is_found(self) -> None:
        prefixes = SlotPrefixes()
        prefixes.put(0, SlotPrefix("p", (1, 2)))
        prefixes.put(1, SlotPrefix("p", (1, 2, 3, 9)))
        prefixes.put(2, SlotPrefix("q", (1, 2, 3, 4)))
        assert prefixes.best("p", (1, 2, 3, 4, 5)) == (1, 3)
        assert prefixes.best("p", (7, 2, 3)) is None
        assert prefixes.best("r", (1, 2, 3)) is None

    def test_use_makes_a_slot_the_last_to_go(self) -> None:
        prefixes = SlotPrefixes()
        for slot in range(3):
            prefixes.put(slot, SlotPrefix("p", (1, 2)))
        prefixes.mark_used(0)
        assert list(prefixes) == [1, 2, 0]
        prefixes.drop(1)
        prefixes.drop(1)
        assert list(prefixes) == [2, 0]


class TestPagePrefixes:
    @given(own=_tokens, other=_tokens)
    def test_pages_found_hold_the_same_beginning_and_never_all_tokens(self, own, other) -> None:
        prefixes = PagePrefixes(2)
        pages = list(range(10, 10 + len(own) // 2))
        prefixes.register("p", own, pages)
        found = prefixes.find("p", other)
        assert found == pages[: len(found)]
        assert 2 * len(found) < len(other)
        assert own[: 2 * len(found)] == other[: 2 * len(found)]
        next_pair = slice(2 * len(found), 2 * len(found) + 2)
        could_go_on = 2 * len(found) + 2 < len(other) and len(found) < len(pages)
        assert not (could_go_on and own[next_pair] == other[next_pair])

    def test_a_page_stands_for_all_tokens_before_it(self) -> None:
        prefixes = PagePrefixes(2)
        prefixes.register("p", [1, 2, 3, 4], [10, 11])
        assert prefixes.find("p", [9, 9, 3, 4, 5]) == []
        assert prefixes.find("q", [1, 2, 3, 4, 5]) == []

    def test_the_first_page_of_a_prefix_stays(self) -> None:
        prefixes = PagePrefixes(2)
        prefixes.register("p", [1, 2], [10])
        prefixes.register("p", [1, 2, 3, 4], [20, 21])
        assert prefixes.find("p", [1, 2, 3, 4, 5]) == [10, 21]
        assert (10 in prefixes, 20 in prefixes, 21 in prefixes) == (True, False, True)
        prefixes.check_integrity()

    def test_who_rests_longest_goes_first(self) -> None:
        prefixes = PagePrefixes(1)
        prefixes.register("p", [1, 2, 3], [10, 11, 12])
        for page in (12, 11, 10):
            prefixes.rest(page)
        prefixes.hold(11)
        assert prefixes.idle == {10, 12}
        assert prefixes.evict() == 12
        assert prefixes.find("p", [1, 2, 3, 4]) == [10, 11]
        prefixes.check_integrity()

    def test_a_wrong_book_is_found(self) -> None:
        prefixes = PagePrefixes(1)
        prefixes.rest(10)
        with pytest.raises(AssertionError, match="unknown page"):
            prefixes.check_integrity()
