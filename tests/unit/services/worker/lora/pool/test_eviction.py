from __future__ import annotations

import numpy as np

from services.worker.lora.pool.eviction import FrequencyEviction


class TestFrequencyEviction:
    def test_the_least_used_goes_first(self) -> None:
        eviction = FrequencyEviction()
        for key in ("a", "b", "c", "a", "a", "b"):
            eviction.mark_used(key)
        assert eviction.by_value(["a", "b", "c"]) == ["c", "b", "a"]
        eviction.forget("a")
        eviction.forget("unknown")
        assert eviction.by_value(["a", "b", "c"]) == ["a", "c", "b"]

    def test_equally_often_used_the_longest_unused_goes_first(self) -> None:
        eviction = FrequencyEviction()
        for key in ("a", "b", "c"):
            eviction.mark_used(key)
        assert eviction.by_value(["c", "b", "a"]) == ["a", "b", "c"]

    def test_old_uses_fade(self) -> None:
        eviction = FrequencyEviction()
        for _ in range(50):
            eviction.mark_used("once popular")
        for _ in range(150):
            eviction.mark_used("popular now")
        assert eviction.by_value(["once popular", "popular now"])[0] == "once popular"

    def test_a_key_that_comes_back_is_remembered(self) -> None:
        eviction = FrequencyEviction()
        for key in ("a", "a", "a"):
            eviction.mark_used(key)
        eviction.mark_evicted("a")
        eviction.mark_used("b")
        eviction.mark_used("b")
        eviction.mark_used("a")
        assert eviction.by_value(["a", "b"]) == ["b", "a"]

    def test_what_left_long_ago_is_forgotten(self) -> None:
        eviction = FrequencyEviction()
        for name in range(1000):
            eviction.mark_used(name)
            eviction.mark_evicted(name)
        assert len(eviction._uses) < 100

    def test_finds_more_of_a_skewed_load_than_recency_does(self) -> None:
        rng = np.random.default_rng(0)
        weights = 1 / np.arange(1, 401)
        trace = rng.choice(400, 4000, p=weights / weights.sum()).tolist()
        eviction, held, num_hits = FrequencyEviction(), set[int](), 0
        recent: dict[int, None] = {}
        num_recency_hits = 0
        for name in trace:
            num_hits += name in held
            if name not in held and len(held) == 20:
                victim = eviction.by_value(held)[0]
                held.discard(victim)
                eviction.mark_evicted(victim)
            held.add(name)
            eviction.mark_used(name)
            num_recency_hits += name in recent
            recent.pop(name, None)
            recent[name] = None
            if len(recent) > 20:
                del recent[next(iter(recent))]
        assert num_hits > 1.1 * num_recency_hits
