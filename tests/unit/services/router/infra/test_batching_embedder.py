from __future__ import annotations

import asyncio

import numpy as np
import pytest

from hilora.errors import Unavailable
from services.router.infra.batching_embedder import BatchingEmbedder
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
        with pytest.raises(RuntimeError, match="out of memory"):
            await embedder.embed("a")
        assert (await embedder.embed("b")).shape == (32,)


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
