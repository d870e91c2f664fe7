from __future__ import annotations

import pytest

from services.worker.engine.kv.slot_kv_cache import SlotKvCache
from tests.builders.kv import Sequences, make_cache

_STEM = list(range(12))


@pytest.fixture
def cache() -> SlotKvCache:
    cache = make_cache("slots", enable_prefix_cache=True)
    assert isinstance(cache, SlotKvCache)
    return cache


@pytest.fixture
def sequences(cache) -> Sequences:
    return Sequences(cache)


def _serve(sequences: Sequences, owner: str, tokens: list[int], prefix_key: str = "p", **end) -> int:
    """Run a request to its end; the tokens it found in the cache."""
    num_cached = sequences.begin(owner, tokens, prefix_key=prefix_key).num_cached_tokens
    sequences.step([], [(owner, len(tokens) - num_cached)])
    sequences.end(owner, **{"is_reusable": True, **end})
    sequences.cache.check_integrity()
    return num_cached


class TestSlots:
    def test_the_lowest_empty_slot_is_taken(self) -> None:
        cache = make_cache("slots")
        handles = [cache.allocate(name, [1], prefix_key=None) for name in "abc"]
        for handle in (handles[1], handles[0]):
            cache.free(handle, token_ids=(), num_written=0, is_reusable=False)
        cache.allocate("d", [1], prefix_key=None)
        assert cache._slot_of == {"c": 2, "d": 0}

    def test_without_the_prefix_cache_nothing_is_kept(self) -> None:
        sequences = Sequences(make_cache("slots"))
        assert [_serve(sequences, owner, _STEM) for owner in "ab"] == [0, 0]


class TestReuse:
    def test_an_ended_request_is_continued_in_its_slot(self, cache, sequences) -> None:
        _serve(sequences, "a", _STEM)
        assert sequences.begin("b", [*_STEM, 50], prefix_key="p").num_cached_tokens == 12
        assert cache._slot_of == {"b": 0}
        sequences.step([], [("b", 1)])
        sequences.step(["b"], [])
        cache.check_integrity()

    def test_a_request_that_turns_off_gets_a_copy(self, cache, sequences) -> None:
        _serve(sequences, "a", [*_STEM, 50, 51])
        assert _serve(sequences, "b", [*_STEM, 60]) == 12
        assert _serve(sequences, "c", [*_STEM, 50, 51, 52]) == 14
        assert cache._slot_of == {}

    def test_a_running_requests_own_beginning_is_copied(self, cache, sequences) -> None:
        _serve(sequences, "a", _STEM)
        sequences.begin("b", [*_STEM, 50], prefix_key="p")
        assert sequences.begin("c", [*_STEM, 60], prefix_key="p").num_cached_tokens == 12
        sequences.step([], [("c", 1), ("b", 1)])
        sequences.step(["b", "c"], [])
        cache.check_integrity()

    def test_what_a_running_request_has_not_proven_is_not_shared(self, sequences) -> None:
        sequences.begin("a", _STEM, prefix_key="p")
        sequences.step([], [("a", 12)])
        assert sequences.begin("b", [*_STEM, 50], prefix_key="p").num_cached_tokens == 0

    def test_another_key_shares_nothing(self, sequences) -> None:
        assert [_serve(sequences, owner, _STEM, owner) for owner in "ab"] == [0, 0]

    def test_few_tokens_are_not_worth_it(self, sequences) -> None:
        _serve(sequences, "a", _STEM)
        assert _serve(sequences, "b", [*_STEM[:7], 50]) == 0

    def test_a_failed_request_leaves_what_it_had_found(self, sequences) -> None:
        _serve(sequences, "a", _STEM)
        _serve(sequences, "b", [*_STEM, 50, 51], is_reusable=False)
        assert _serve(sequences, "c", [*_STEM, 50, 51, 52]) == 12

    def test_the_slot_kept_longest_goes_when_room_is_needed(self, sequences) -> None:
        for idx, owner in enumerate("abc"):
            _serve(sequences, owner, [100 + idx, *_STEM])
        assert _serve(sequences, "d", [100, *_STEM, 50]) == 13
        _serve(sequences, "e", [7, 7])
        assert _serve(sequences, "f", [101, *_STEM, 50]) == 0
        assert _serve(sequences, "g", [100, *_STEM, 50, 51]) == 14

    def test_the_only_slot_left_is_cut_back(self, sequences) -> None:
        _serve(sequences, "a", [*_STEM, 50, 51, 52])
        for owner in "bc":
            sequences.begin(owner, [7], prefix_key=None)
        assert _serve(sequences, "d", [*_STEM, 60]) == 12


class TestIntegrity:
    def test_an_empty_slot_with_content_is_found(self, cache) -> None:
        cache.keys(1)[2, 0, 4, 0] = 1.0
        with pytest.raises(AssertionError, match="still holds"):
            cache.check_integrity()

    def test_a_lost_slot_is_found(self, cache) -> None:
        cache._empty.remove(1)
        with pytest.raises(AssertionError, match="lost"):
            cache.check_integrity()

    def test_tokens_that_were_never_written_are_found(self, cache) -> None:
        handle = cache.allocate("a", _STEM, prefix_key="p")
        cache.free(handle, token_ids=_STEM, num_written=12, is_reusable=True)
        with pytest.raises(AssertionError, match="never written"):
            cache.check_integrity()
