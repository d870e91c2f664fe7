"""A KV cache that repeats what another one went through comes to the same."""

from __future__ import annotations

import pickle
import random

import pytest
import torch

from services.worker.engine.execution.lockstep import (
    JournaledKvCache,
    KvAllocation,
    KvReplay,
    KvReservation,
    StepLayout,
)
from services.worker.engine.kv.kv_handle import KvHandle
from services.worker.engine.kv.paged_kv_cache import PagedKvCache
from services.worker.engine.kv.slot_kv_cache import SlotKvCache

_CPU = torch.device("cpu")


def _cache(layout: str):
    common = {"num_layers": 1, "num_heads": 1, "max_len": 32, "head_dim": 2, "dtype": torch.float32, "device": _CPU}
    if layout == "slots":
        return SlotKvCache(num_slots=3, enable_prefix_cache=True, **common)
    return PagedKvCache(num_pages=14, page_size=8, enable_prefix_cache=True, varlen=None, **common)


class TestJournal:
    def test_calls_are_told_once_in_order(self) -> None:
        journal = JournaledKvCache(_cache("slots"))
        handle = journal.allocate("a", [1, 2, 3], prefix_key="k")
        assert journal.reserve(handle, 5)
        first, second = journal.take_calls()
        assert isinstance(first, KvAllocation)
        assert isinstance(second, KvReservation)
        assert (first.owner, first.token_ids, first.prefix_key, first.num_cached_tokens) == ("a", (1, 2, 3), "k", 0)
        assert journal.take_calls() == ()

    def test_what_was_refused_is_not_told(self) -> None:
        journal = JournaledKvCache(_cache("slots"))
        with pytest.raises(ValueError, match="too many tokens"):
            journal.allocate("a", [1] * 99, prefix_key=None)
        assert journal.take_calls() == ()

    def test_a_follower_that_knows_another_prefix_is_found_out(self) -> None:
        call = KvAllocation(owner="a", token_ids=(1,) * 20, prefix_key="k", num_cached_tokens=16)
        with pytest.raises(AssertionError, match="different prefixes"):
            KvReplay(_cache("slots")).repeat([call])


@pytest.mark.parametrize("layout", ["slots", "pages"])
@pytest.mark.parametrize("seed", range(4))
def test_two_caches_make_the_same_choices(layout, seed) -> None:
    rng = random.Random(seed)
    leader, follower = _cache(layout), _cache(layout)
    journal, replay = JournaledKvCache(leader), KvReplay(follower)
    held: dict[str, tuple[KvHandle, list[int]]] = {}
    num_shared = 0
    for step in range(120):
        if rng.random() < 0.5:
            token_ids = [7] * rng.randint(9, 20) + [rng.randint(1, 5) for _ in range(rng.randint(1, 8))]
            if journal.can_admit(len(token_ids)):
                handle = journal.allocate(f"r{step}", token_ids, prefix_key=rng.choice(["k", "l", None]))
                num_shared += handle.num_cached_tokens
                held[handle.owner] = (handle, token_ids)
        elif held:
            handle, token_ids = held.pop(rng.choice(list(held)))
            journal.free(handle, token_ids=token_ids, num_written=len(token_ids), is_reusable=rng.random() < 0.8)
        for handle, token_ids in held.values():
            if journal.reserve(handle, len(token_ids) + 1):
                token_ids.append(rng.randint(1, 5))
        decodes = [(handle, len(token_ids) - 1) for handle, token_ids in held.values()]
        journal.attention_step(decodes, [], _CPU)
        # As it travels between processes.
        calls = pickle.loads(pickle.dumps(journal.take_calls()))
        replay.repeat(calls)
        steps, chunks = journal.last_step
        replay.attention_step(StepLayout(decodes=steps, chunks=chunks, decode_plans=(), chunk_plans=()), _CPU)
        assert follower.owners == leader.owners
        assert follower.usage == leader.usage
        follower.check_integrity()
    assert num_shared > 0
