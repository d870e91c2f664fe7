"""Nobody generates for a client that is gone."""

from __future__ import annotations

import asyncio
import json

import httpx
import openai
import pytest

from tests.fakes.router_stack import eventually, running_router


@pytest.fixture
async def slow_stack():
    async with running_router() as stack:
        stack.worker.service.seconds_per_token = 0.2
        yield stack


async def _open_raw(stack, *, stream: bool):
    """A request on a bare socket, so that the test decides when it closes."""
    host, _, port = stack.router.rest_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps({"model": "base", "prompt": "x", "stream": stream}).encode()
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body) + body
    )
    await writer.drain()
    return reader, writer


async def _was_counted(stack, outcome: str) -> bool:
    async with httpx.AsyncClient(base_url=stack.url) as plain:
        text = (await plain.get("/metrics")).text
    return f'hilora_router_requests_total{{endpoint="/v1/completions",outcome="{outcome}"}} 1.0' in text


class TestDisconnect:
    @pytest.mark.parametrize("stream", [True, False])
    async def test_a_closed_connection_aborts_on_the_worker(self, slow_stack, stream):
        service = slow_stack.worker.service
        _, writer = await _open_raw(slow_stack, stream=stream)
        await eventually(lambda: service.num_running == 1)
        writer.close()
        await eventually(lambda: len(service.aborted) == 1)
        assert service.num_running == 0
        assert not service.finished
        assert await _was_counted(slow_stack, "aborted")

    async def test_leaving_in_the_middle_of_a_stream_aborts_too(self, slow_stack):
        service = slow_stack.worker.service
        reader, writer = await _open_raw(slow_stack, stream=True)
        await asyncio.wait_for(reader.readuntil(b"Paris"), 5)
        writer.close()
        await eventually(lambda: len(service.aborted) == 1)

    async def test_openai_s_client_closing_its_stream_aborts_too(self, slow_stack):
        service = slow_stack.worker.service
        async with openai.AsyncOpenAI(base_url=f"{slow_stack.url}/v1", api_key="x", max_retries=0) as client:
            stream = await client.completions.create(model="auto", prompt="x", stream=True)
            await anext(aiter(stream))
            await stream.close()
            await eventually(lambda: len(service.aborted) == 1)

    async def test_the_others_go_on(self, slow_stack):
        async with openai.AsyncOpenAI(base_url=f"{slow_stack.url}/v1", api_key="x", max_retries=0) as client:
            staying = asyncio.create_task(client.completions.create(model="base", prompt="y"))
            _, writer = await _open_raw(slow_stack, stream=True)
            await eventually(lambda: slow_stack.worker.service.num_running == 2)
            writer.close()
            assert (await staying).choices[0].text == "Paris is the capital."


class TestDrain:
    async def test_a_stop_lets_the_stream_in_flight_finish(self, slow_stack):
        async with openai.AsyncOpenAI(base_url=f"{slow_stack.url}/v1", api_key="x", max_retries=0) as client:
            stream = await client.completions.create(model="auto", prompt="x", stream=True)
            await anext(aiter(stream))
            stopping = asyncio.create_task(slow_stack.router.stop(grace_seconds=5))
            texts = [chunk.choices[0].text async for chunk in stream]
            assert "".join(texts).endswith(" capital.")
            await stopping
            with pytest.raises(openai.APIConnectionError):
                await client.models.list()
