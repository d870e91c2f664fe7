from __future__ import annotations

import pytest
import torch

from services.worker.engine.kv_cache import SlotKvCache


@pytest.fixture
def cache() -> SlotKvCache:
    return SlotKvCache(
        num_layers=2, num_slots=3, num_heads=2, max_len=5, head_dim=4, dtype=torch.float32, device=torch.device("cpu")
    )


class TestSlots:
    def test_the_lowest_free_slot_is_taken(self, cache) -> None:
        assert [cache.allocate(name) for name in "abc"] == [0, 1, 2]
        cache.free(1, num_written=0)
        cache.free(0, num_written=0)
        assert cache.allocate("d") == 0
        assert cache.owners == {"c", "d"}
        assert (cache.num_free, cache.usage) == (1, pytest.approx(2 / 3))

    def test_none_left_is_a_misuse(self, cache) -> None:
        for name in "abc":
            cache.allocate(name)
        with pytest.raises(ValueError, match="no free slot"):
            cache.allocate("d")

    def test_a_freed_slot_is_clear(self, cache) -> None:
        slot = cache.allocate("a")
        for layer_idx in range(2):
            cache.keys(layer_idx)[slot, :, :3] = float("nan")
            cache.values(layer_idx)[slot, :, :3] = 1.0
        cache.free(slot, num_written=3)
        cache.check_integrity()


class TestIntegrity:
    def test_a_free_slot_with_content_is_found(self, cache) -> None:
        cache.keys(1)[2, 0, 4, 0] = 1.0
        with pytest.raises(AssertionError, match="still holds"):
            cache.check_integrity()

    def test_a_lost_slot_is_found(self, cache) -> None:
        cache._free.remove(1)
        with pytest.raises(AssertionError, match="lost"):
            cache.check_integrity()
