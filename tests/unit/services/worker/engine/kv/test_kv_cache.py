"""What both layouts promise, and which one a model gets."""

from __future__ import annotations

import random

import pytest
import torch

from hilora.errors import InvalidInput
from services.worker.engine.config import EngineConfig
from services.worker.engine.kv.kv_cache import KvCache, build_kv_cache
from services.worker.engine.kv.paged_kv_cache import PagedKvCache
from services.worker.engine.kv.slot_kv_cache import SlotKvCache
from tests.builders.engine import make_engine
from tests.builders.kv import FULL, LAYOUTS, Sequences, make_cache
from tests.builders.logits import LogitRecorder, assert_close, full_forward_logits, random_prompt, run_prompts
from tests.builders.models import load_tiny, make_model


@pytest.fixture(params=LAYOUTS[:2])
def cache(request) -> KvCache:
    return make_cache(request.param)


class TestOwnership:
    def test_memory_is_held_from_allocate_to_free(self, cache) -> None:
        handle = cache.allocate("a", range(5), prefix_key=None)
        assert (handle.owner, handle.num_cached_tokens) == ("a", 0)
        assert cache.owners == {"a"}
        assert 0 < cache.usage < 1
        cache.free(handle, token_ids=range(5), num_written=0, is_reusable=True)
        assert cache.owners == set()
        assert cache.usage == 0
        cache.check_integrity()

    def test_an_owner_allocates_once(self, cache) -> None:
        cache.allocate("a", range(5), prefix_key=None)
        with pytest.raises(ValueError, match="already"):
            cache.allocate("a", range(5), prefix_key=None)

    def test_who_holds_nothing_is_refused(self, cache) -> None:
        handle = cache.allocate("a", range(5), prefix_key=None)
        cache.free(handle, token_ids=(), num_written=0, is_reusable=False)
        with pytest.raises(ValueError, match="a holds no"):
            cache.free(handle, token_ids=(), num_written=0, is_reusable=False)
        with pytest.raises(ValueError, match="a holds no"):
            cache.reserve(handle, 3)
        with pytest.raises(ValueError, match="a holds no"):
            cache.attention_step([(handle, 0)], [], torch.device("cpu"))

    def test_a_full_cache_admits_nobody(self, cache) -> None:
        for owner in "abc":
            assert cache.can_admit(1)
            assert cache.reserve(cache.allocate(owner, range(5), prefix_key=None), 24)
        assert not cache.can_admit(1)
        with pytest.raises(ValueError, match="free"):
            cache.allocate("d", range(5), prefix_key=None)
        assert cache.owners == set("abc")
        cache.check_integrity()

    def test_a_request_longer_than_the_context_is_not_admitted(self, cache) -> None:
        assert cache.can_admit(24)
        assert not cache.can_admit(25)
        assert not cache.reserve(cache.allocate("a", range(5), prefix_key=None), 25)


class TestHygiene:
    def test_what_a_request_wrote_is_gone_after_it(self, cache) -> None:
        sequences = Sequences(cache)
        for owner in "ab":
            sequences.begin(owner, range(9))
        sequences.step([], [("a", 9), ("b", 9)])
        sequences.step(["b", "a"], [])
        # The accounts of a request whose step failed may be behind what the step wrote.
        sequences.num_written["a"] = 0
        sequences.end("a")
        cache.check_integrity()

    def test_what_is_not_finite_hurts_nobody_else(self, cache) -> None:
        sequences = Sequences(cache)
        sequences.begin("a", range(9))
        sequences.begin("b", range(3))
        sequences.step([], [("b", 3)])
        handle = sequences.handles["a"]
        step = cache.attention_step([], [(handle, 0, 0, 9)], torch.device("cpu"))
        broken = torch.full((2, 9, 4), float("nan"), dtype=torch.float64)
        for layer_idx in range(cache.num_layers):
            step.attend(layer_idx, torch.zeros(4, 9, 4, dtype=torch.float64), broken, broken, FULL)
        sequences.step(["b"], [])
        sequences.end("a")
        sequences.begin("c", range(11))
        sequences.step(["b"], [("c", 11)])
        sequences.step(["b", "c"], [])
        cache.check_integrity()


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("seed", range(5))
def test_books_and_shared_content_are_right_after_every_step(layout, seed) -> None:
    """Prompts of two stems and two keys, so that much is shared; memory is scarce, so that much is evicted."""
    rng = random.Random(seed)
    cache = make_cache(layout, num_seqs=4, max_len=48, enable_prefix_cache=True)
    sequences = Sequences(cache, seed=seed)
    stems = [[rng.randrange(2) for _ in range(32)] for _ in range(2)]
    num_shared = 0
    for step in range(100):
        if rng.random() < 0.4:
            stem = rng.choice(stems)
            prompt = [*stem[: rng.randint(1, 32)], *(rng.randrange(2) for _ in range(rng.randint(0, 8)))]
            if cache.can_admit(len(prompt)):
                handle = sequences.begin(f"s{step}", prompt, prefix_key=rng.choice(["p", "p", "q", None]))
                assert handle.num_cached_tokens < len(prompt)
                num_shared += handle.num_cached_tokens
        ready = list(sequences.handles)
        rng.shuffle(ready)
        left = {owner: len(sequences.tokens[owner]) - sequences.num_written[owner] for owner in ready}
        decodes = [
            owner
            for owner in ready
            if left[owner] == 0 and cache.reserve(sequences.handles[owner], sequences.num_written[owner] + 1)
        ]
        chunks = [(owner, min(rng.randint(1, 12), num)) for owner, num in left.items() if num > 0]
        if decodes or chunks:
            sequences.step(decodes, chunks)
        cache.check_integrity()
        for owner in ready:
            if rng.random() < 0.25:
                sequences.end(owner, is_reusable=rng.random() < 0.7)
                cache.check_integrity()
    assert num_shared > 20


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_type_computes_as_the_model_does_by_itself(layout, dtype) -> None:
    engine = make_engine(load_tiny(dtype=dtype), max_num_batched_tokens=16, kv_layout=layout)
    recorder = LogitRecorder(engine)
    prompts = {f"r{length}": random_prompt(length, length) for length in (5, 20, 33)}
    done = run_prompts(engine, prompts, {})
    reference = make_model(dtype=dtype)
    for name, prompt in prompts.items():
        expected = full_forward_logits(reference, prompt, done[name].token_ids)
        assert recorder.of(name).dtype is dtype
        assert_close(recorder.of(name), expected, 16 * torch.finfo(dtype).eps)


class TestLayout:
    def test_a_cpu_gets_slots(self) -> None:
        assert isinstance(build_kv_cache(load_tiny(), EngineConfig()), SlotKvCache)

    @pytest.mark.parametrize(("layout", "kind"), [("slots", SlotKvCache), ("pages", PagedKvCache)])
    def test_a_layout_can_be_asked_for(self, layout, kind) -> None:
        assert isinstance(build_kv_cache(load_tiny(), EngineConfig(kv_layout=layout)), kind)


class TestBytes:
    """A position of the tiny model takes 2 (keys, values) * 2 layers * 2 heads * 8 * 4 bytes = 256."""

    @pytest.mark.parametrize(("num_bytes", "num_slots"), [(64 * 256, 1), (64 * 256 * 3 + 1, 3), (1 << 30, 16)])
    def test_they_decide_the_number_of_slots(self, num_bytes, num_slots) -> None:
        config = EngineConfig(max_model_len=64, kv_cache_bytes=num_bytes, kv_layout="slots")
        cache = build_kv_cache(load_tiny(), config)
        for idx in range(num_slots):
            assert cache.can_admit(64)
            cache.allocate(str(idx), range(64), prefix_key=None)
        assert not cache.can_admit(1)

    @pytest.mark.parametrize(("num_bytes", "num_pages"), [(6 * 16 * 256, 4), (9 * 16 * 256, 7), (1 << 30, 64)])
    def test_they_decide_the_number_of_pages(self, num_bytes, num_pages) -> None:
        config = EngineConfig(max_model_len=64, kv_cache_bytes=num_bytes, kv_layout="pages")
        cache = build_kv_cache(load_tiny(), config)
        cache.allocate("a", range(16), prefix_key=None)
        assert cache.usage == pytest.approx(1 / num_pages)

    @pytest.mark.parametrize(("layout", "num_bytes"), [("slots", 64 * 256), ("pages", 6 * 16 * 256)])
    def test_one_request_must_fit(self, layout, num_bytes) -> None:
        config = EngineConfig(max_model_len=64, kv_cache_bytes=num_bytes - 1, kv_layout=layout)
        with pytest.raises(InvalidInput, match=f"takes {num_bytes}") as caught:
            build_kv_cache(load_tiny(), config)
        assert (caught.value.code, caught.value.place) == ("kv_cache_too_small", "kv_cache_bytes")
