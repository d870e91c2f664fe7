"""Slots that hold prompt and answer of an encoder-decoder model."""

from __future__ import annotations

import pytest
import torch

from services.worker.engine.kv.seq2seq_kv_cache import Seq2SeqKvCache


@pytest.fixture
def cache() -> Seq2SeqKvCache:
    return Seq2SeqKvCache(
        num_layers=2, num_slots=3, num_heads=2, max_len=8, head_dim=4, dtype=torch.float32, device=torch.device("cpu")
    )


def _free(cache, handle) -> None:
    cache.free(handle, token_ids=(), num_written=0, is_reusable=True)


class TestSlots:
    def test_the_lowest_free_slot_is_taken(self, cache) -> None:
        handles = [cache.allocate(name, [1], prefix_key=None) for name in "abc"]
        assert [cache.slot_of(handle) for handle in handles] == [0, 1, 2]
        assert not cache.can_admit(1)
        _free(cache, handles[1])
        assert cache.owners == {"a", "c"}
        assert cache.usage == pytest.approx(2 / 3)
        assert cache.slot_of(cache.allocate("d", [1], prefix_key=None)) == 1
        cache.check_integrity()

    def test_nothing_is_shared(self, cache) -> None:
        first = cache.allocate("a", [5, 6, 7], prefix_key="k")
        _free(cache, first)
        assert cache.allocate("b", [5, 6, 7], prefix_key="k").num_cached_tokens == 0

    def test_a_slot_ends_where_the_context_does(self, cache) -> None:
        assert not cache.can_admit(9)
        handle = cache.allocate("a", [1] * 8, prefix_key=None)
        assert cache.reserve(handle, 8)
        assert not cache.reserve(handle, 9)

    def test_misuse_is_refused(self, cache) -> None:
        handle = cache.allocate("a", [1], prefix_key=None)
        with pytest.raises(ValueError, match="holds a slot already"):
            cache.allocate("a", [1], prefix_key=None)
        with pytest.raises(ValueError, match="too many tokens"):
            cache.allocate("b", [1] * 9, prefix_key=None)
        _free(cache, handle)
        with pytest.raises(ValueError, match="holds no slot"):
            _free(cache, handle)


class TestClearing:
    def test_both_ends_are_cleared(self, cache) -> None:
        handle = cache.allocate("a", [1], prefix_key=None)
        cache.touch(0, num_answer=2, num_prompt=3)
        for layer_idx in range(2):
            for kept in (cache.keys(layer_idx), cache.values(layer_idx)):
                kept[0, :, :2] = 1
                kept[0, :, 5:] = 1
        cache.check_integrity()
        _free(cache, handle)
        assert not any(cache.keys(layer_idx).any() or cache.values(layer_idx).any() for layer_idx in range(2))
        cache.check_integrity()

    def test_writing_what_was_not_announced_is_found(self, cache) -> None:
        cache.allocate("a", [1], prefix_key=None)
        cache.touch(0, num_answer=2, num_prompt=3)
        cache.values(1)[0, 0, 3] = 1
        with pytest.raises(AssertionError, match="still holds values"):
            cache.check_integrity()

    def test_prompt_and_answer_that_meet_are_found(self, cache) -> None:
        cache.allocate("a", [1], prefix_key=None)
        cache.touch(0, num_answer=4, num_prompt=5)
        with pytest.raises(AssertionError, match="meet"):
            cache.check_integrity()
