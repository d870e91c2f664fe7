from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from hilora.errors import Exhausted, Unavailable
from services.router.infra.batching_embedder import BatchingEmbedder
from services.router.infra.embedding_cache import EmbeddingCache
from services.router.text_key import text_key
from tests.fakes.router_encoder import HashEncoder


@pytest.fixture
async def encoder():
    return HashEncoder(seconds_per_pass=0.02)


@pytest.fixture
async def embedder(encoder):
    running = BatchingEmbedder(lambda: encoder, max_batch=4)
    await running.start()
    encoder.batches.clear()
    yield running
    await running.stop(grace_seconds=0)


class TestEmbedding:
    async def test_each_text_gets_its_own_vector(self, embedder, encoder):
        texts = [f"text number {number}" for number in range(11)]
        vectors = await asyncio.gather(*(embedder.embed(text) for text in texts))
        np.testing.assert_allclose(np.stack(vectors), encoder.encode(texts), rtol=1e-6)

    async def test_texts_that_wait_together_share_a_pass(self, embedder, encoder):
        await asyncio.gather(*(embedder.embed(str(number)) for number in range(9)))
        assert [len(batch) for batch in encoder.batches] == [4, 4, 1]

    async def test_one_text_alone_does_not_wait_for_others(self, embedder, encoder):
        await embedder.embed("alone")
        assert encoder.batches == [["alone"]]

    async def test_a_client_that_left_costs_no_pass(self, embedder, encoder):
        first = asyncio.create_task(embedder.embed("first"))
        await asyncio.sleep(0.005)
        leaving = asyncio.create_task(embedder.embed("leaving"))
        staying = asyncio.create_task(embedder.embed("staying"))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(first, staying)
        assert encoder.batches == [["first"], ["staying"]]

    async def test_a_failing_pass_fails_its_texts_alone(self, embedder, encoder):
        encode = encoder.encode

        def break_once(texts):
            encoder.encode = encode
            raise RuntimeError("out of memory")

        encoder.encode = break_once
        with pytest.raises(Unavailable, match="RuntimeError") as raised:
            await embedder.embed("a")
        assert raised.value.code == "encoder_failed"
        assert (await embedder.embed("b")).shape == (32,)

    async def test_a_text_that_cannot_be_embedded_costs_its_batch_nothing(self, embedder, encoder):
        encode = encoder.encode

        def fail_on_one(texts):
            if "poison" in texts:
                raise ValueError("no such token")
            return encode(texts)

        encoder.encode = fail_on_one
        texts = ["a", "poison", "b", "c"]
        ends = await asyncio.gather(*(embedder.embed(text) for text in texts), return_exceptions=True)
        assert [getattr(end, "code", None) for end in ends] == [None, "encoder_failed", None, None]

    async def test_a_pass_that_does_not_return_holds_nobody_for_ever(self, encoder):
        embedder = BatchingEmbedder(lambda: encoder, timeout_seconds=0.1)
        await embedder.start()
        encode, go_on = encoder.encode, threading.Event()

        def hang(texts):
            go_on.wait()
            return encode(texts)

        encoder.encode = hang
        with pytest.raises(Unavailable) as raised:
            await embedder.embed("a")
        assert raised.value.code == "encoder_timeout"
        go_on.set()
        assert (await embedder.embed("b")).shape == (32,)
        await embedder.stop(grace_seconds=0)


class TestLifecycle:
    async def test_before_the_start_there_is_no_encoder(self, encoder):
        embedder = BatchingEmbedder(lambda: encoder)
        assert embedder.encoder_id is None
        with pytest.raises(Unavailable) as raised:
            await embedder.embed("x")
        assert raised.value.code == "encoder_loading"

    async def test_the_start_warms_the_encoder_up(self, encoder):
        embedder = BatchingEmbedder(lambda: encoder)
        await embedder.start()
        assert len(encoder.batches) == 1
        assert embedder.encoder_id == "hash:1"
        assert embedder.embedding_dim == 32
        await embedder.stop(grace_seconds=0)

    async def test_a_stop_refuses_those_who_wait(self, encoder):
        embedder = BatchingEmbedder(lambda: encoder, max_batch=1)
        await embedder.start()
        waiting = [asyncio.create_task(embedder.embed(str(number))) for number in range(3)]
        await asyncio.sleep(0.005)
        await embedder.stop(grace_seconds=0)
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(end) for end in ends] == [Unavailable] * 3
        await embedder.stop(grace_seconds=0)


class TestMemory:
    async def test_a_text_that_came_lately_costs_no_pass(self, embedder, encoder):
        first, again = await embedder.embed("again"), await embedder.embed("again")
        np.testing.assert_array_equal(first, again)
        assert encoder.batches == [["again"]]
        assert embedder.figures().num_hits == 1

    async def test_equal_texts_at_the_same_time_share_one_place(self, embedder, encoder):
        vectors = await asyncio.gather(*(embedder.embed("same") for _ in range(5)))
        assert encoder.batches == [["same"]]
        assert len({vector.tobytes() for vector in vectors}) == 1
        assert embedder.figures().num_shared == 4

    async def test_one_that_leaves_does_not_take_the_text_from_the_others(self, embedder):
        leaving, staying = (asyncio.create_task(embedder.embed("shared")) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        assert (await staying).shape == (32,)

    async def test_a_failure_is_not_remembered(self, embedder, encoder):
        encode = encoder.encode

        def break_once(texts):
            encoder.encode = encode
            raise RuntimeError("out of memory")

        encoder.encode = break_once
        ends = await asyncio.gather(*(embedder.embed("a") for _ in range(2)), return_exceptions=True)
        assert [type(end) for end in ends] == [Unavailable] * 2
        assert (await embedder.embed("a")).shape == (32,)

    async def test_nobody_can_change_what_is_remembered(self, embedder):
        vector = await embedder.embed("a")
        with pytest.raises(ValueError, match="read-only"):
            vector[0] = 1.0

    async def test_an_abandoned_text_can_be_asked_for_again(self, embedder, encoder):
        busy = asyncio.create_task(embedder.embed("busy"))
        await asyncio.sleep(0.005)
        leaving = asyncio.create_task(embedder.embed("text"))
        await asyncio.sleep(0)
        leaving.cancel()
        await busy
        assert (await embedder.embed("text")).shape == (32,)


class TestBounds:
    async def test_one_text_too_many_is_refused_while_equal_ones_still_fit(self, encoder):
        embedder = BatchingEmbedder(lambda: encoder, max_batch=1, max_waiting=2)
        await embedder.start()
        busy = asyncio.create_task(embedder.embed("busy"))
        await asyncio.sleep(0.005)
        waiting = [asyncio.create_task(embedder.embed(text)) for text in ("a", "b", "b")]
        await asyncio.sleep(0)
        with pytest.raises(Exhausted) as raised:
            await embedder.embed("c")
        assert raised.value.code == "encoder_queue_full"
        await asyncio.gather(busy, *waiting)
        assert (await embedder.embed("c")).shape == (32,)
        assert embedder.figures().num_refused == 1
        await embedder.stop(grace_seconds=0)

    def test_the_least_recently_used_text_goes_first(self):
        cache = EmbeddingCache(max_entries=2, max_bytes=1 << 20)
        for text in ("a", "b"):
            cache.put(text_key(text), np.ones(4, np.float32))
        assert cache.get(text_key("a")) is not None
        cache.put(text_key("c"), np.ones(4, np.float32))
        assert [cache.get(text_key(text)) is not None for text in "abc"] == [True, False, True]

    @pytest.mark.parametrize("max_bytes", [0, 700, 5000])
    def test_bytes_stay_within_their_bound(self, max_bytes):
        cache = EmbeddingCache(max_entries=100, max_bytes=max_bytes)
        for number in range(50):
            cache.put(text_key(str(number % 20)), np.ones(8, np.float32))
            assert cache.num_bytes <= max_bytes
        assert cache.num_bytes == len(cache) * (8 * 4 + 300)
