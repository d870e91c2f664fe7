from __future__ import annotations

import pytest
import torch

from services.worker.engine.kv.paged_kv_cache import PagedKvCache
from tests.builders.kv import Sequences, make_cache

_STEM = list(range(12))


def _cache(**options) -> PagedKvCache:
    """Pages of four positions."""
    cache = make_cache("pages", **{"enable_prefix_cache": True, **options})
    assert isinstance(cache, PagedKvCache)
    return cache


def _no_room(*_args, **_options):
    raise torch.OutOfMemoryError("the device is full")


@pytest.fixture
def sequences() -> Sequences:
    return Sequences(_cache())


def _serve(sequences: Sequences, owner: str, tokens: list[int], prefix_key: str = "p", **end) -> int:
    """Run a request to its end; the tokens it found in the cache."""
    num_cached = sequences.begin(owner, tokens, prefix_key=prefix_key).num_cached_tokens
    sequences.step([], [(owner, len(tokens) - num_cached)])
    sequences.end(owner, **{"is_reusable": True, **end})
    sequences.cache.check_integrity()
    return num_cached


class TestGrowth:
    def test_a_sequence_takes_what_it_needs(self) -> None:
        cache = _cache(num_pages=10)
        handle = cache.allocate("a", range(5), prefix_key=None)
        assert cache.usage == pytest.approx(0.2)
        assert cache.reserve(handle, 8)
        assert cache.usage == pytest.approx(0.2)
        assert cache.reserve(handle, 9)
        assert cache.usage == pytest.approx(0.3)

    def test_out_of_memory_takes_nothing(self) -> None:
        cache = _cache(num_pages=6)
        first = cache.allocate("a", range(12), prefix_key=None)
        second = cache.allocate("b", range(8), prefix_key=None)
        assert not cache.reserve(first, 24)
        assert cache.reserve(first, 16)
        assert not cache.reserve(second, 9)
        cache.free(first, token_ids=(), num_written=0, is_reusable=False)
        assert cache.reserve(second, 9)
        cache.check_integrity()

    def test_pages_that_cannot_be_cleared_now_are_cleared_later(self, monkeypatch) -> None:
        """Even the list of pages to be cleared takes memory on a device that has none left."""
        cache = _cache(num_pages=6)
        first = cache.allocate("a", range(12), prefix_key=None)
        second = cache.allocate("b", range(4), prefix_key=None)
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "index_fill_", _no_room)
            with pytest.raises(torch.OutOfMemoryError):
                cache.free(first, token_ids=(), num_written=0, is_reusable=False)
            cache.check_integrity()
            assert cache.usage == pytest.approx(1 / 6)
            assert cache.can_admit(16)
            with pytest.raises(torch.OutOfMemoryError):
                cache.allocate("c", range(16), prefix_key=None)
            with pytest.raises(torch.OutOfMemoryError):
                cache.reserve(second, 24)
            cache.check_integrity()
        assert cache.owners == {"b"}
        assert cache.reserve(second, 24)
        assert cache.usage == 1
        cache.check_integrity()

    def test_pages_taken_from_the_prefix_cache_are_cleared_in_one_go(self, monkeypatch) -> None:
        cache = _cache(num_pages=6)
        for owner in ("a", "b"):
            cache.free(
                cache.allocate(owner, range(12), prefix_key=owner),
                token_ids=range(12),
                num_written=12,
                is_reusable=True,
            )
        cleared: list[int] = []
        fill = torch.Tensor.index_fill_

        def counting(tensor, dim, index, value):
            cleared.append(len(index))
            return fill(tensor, dim, index, value)

        monkeypatch.setattr(torch.Tensor, "index_fill_", counting)
        cache.allocate("c", range(24), prefix_key=None)
        assert cleared == [6, 6]
        cache.check_integrity()

    def test_admission_leaves_room_for_those_that_run(self) -> None:
        cache = _cache(num_pages=6)
        assert cache.can_admit(24)
        cache.allocate("a", range(4), prefix_key=None)
        assert cache.can_admit(16)
        assert not cache.can_admit(17)

    def test_the_longest_sequence_must_fit(self) -> None:
        with pytest.raises(ValueError, match="do not hold"):
            _cache(num_pages=5)


class TestReuse:
    def test_full_pages_are_shared(self, sequences) -> None:
        _serve(sequences, "a", [*_STEM, 50, 51])
        assert sequences.begin("b", [*_STEM, 60, 61], prefix_key="p").num_cached_tokens == 12
        assert sequences.begin("c", [*_STEM, 70], prefix_key="p").num_cached_tokens == 12
        assert len(sequences.cache._num_holders) == 5
        sequences.step([], [("b", 2), ("c", 1)])
        sequences.step(["c", "b"], [])
        sequences.end("b", is_reusable=True)
        sequences.step(["c"], [])
        sequences.cache.check_integrity()

    def test_the_last_token_is_always_computed(self, sequences) -> None:
        _serve(sequences, "a", _STEM)
        assert _serve(sequences, "b", _STEM) == 8
        assert _serve(sequences, "c", [*_STEM, 50]) == 12

    def test_another_key_shares_nothing(self, sequences) -> None:
        assert [_serve(sequences, owner, _STEM, owner) for owner in "ab"] == [0, 0]

    def test_without_the_prefix_cache_nothing_is_kept(self) -> None:
        sequences = Sequences(_cache(enable_prefix_cache=False))
        assert [_serve(sequences, owner, _STEM) for owner in "ab"] == [0, 0]

    def test_a_failed_request_leaves_what_it_had_found(self, sequences) -> None:
        _serve(sequences, "a", _STEM)
        _serve(sequences, "b", [*_STEM, *range(50, 56)], is_reusable=False)
        assert _serve(sequences, "c", [*_STEM, *range(50, 56)]) == 12

    def test_the_end_of_the_oldest_prefix_goes_first(self) -> None:
        sequences = Sequences(_cache(num_pages=6))
        _serve(sequences, "a", _STEM)
        _serve(sequences, "b", [100, *_STEM[1:]])
        assert sequences.cache.usage == 0
        assert sequences.cache.can_admit(24)
        _serve(sequences, "c", [7] * 8, prefix_key="other")
        assert _serve(sequences, "d", [*_STEM, 50]) == 4
        sequences.cache.check_integrity()

    def test_one_prefix_computed_twice_is_kept_once(self, sequences) -> None:
        for owner in "ab":
            sequences.begin(owner, _STEM, prefix_key="p")
        sequences.step([], [("a", 12), ("b", 12)])
        sequences.end("a", is_reusable=True)
        sequences.end("b", is_reusable=True)
        assert sequences.cache._prefixes.num_idle == 3
        sequences.cache.check_integrity()


class TestIntegrity:
    def test_an_empty_page_with_content_is_found(self) -> None:
        cache = _cache()
        cache.values(0)[3, 1, 0, 0] = 1.0
        with pytest.raises(AssertionError, match="still holds"):
            cache.check_integrity()

    def test_a_written_null_page_is_found(self) -> None:
        cache = _cache()
        cache.keys(0)[0] = torch.ones(())
        with pytest.raises(AssertionError, match="still holds"):
            cache.check_integrity()

    def test_a_lost_page_is_found(self) -> None:
        cache = _cache()
        cache._empty.pop()
        with pytest.raises(AssertionError, match="lost"):
            cache.check_integrity()

    def test_a_wrong_count_is_found(self) -> None:
        cache = _cache()
        cache.allocate("a", range(5), prefix_key=None)
        cache._num_holders[1] += 1
        with pytest.raises(AssertionError, match="counted wrong"):
            cache.check_integrity()
