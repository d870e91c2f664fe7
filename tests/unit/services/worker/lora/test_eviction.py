from __future__ import annotations

from services.worker.lora.eviction import LruEviction


class TestLruEviction:
    def test_the_victim_is_the_least_recently_used_that_may_go(self) -> None:
        eviction = LruEviction[str]()
        for key in ("a", "b", "c", "a"):
            eviction.mark_used(key)
        assert eviction.select_victim(lambda key: True) == "b"
        assert eviction.select_victim(lambda key: key != "b") == "c"
        eviction.forget("b")
        eviction.forget("unknown")
        assert eviction.select_victim(lambda key: True) == "c"
        assert eviction.select_victim(lambda key: False) is None
