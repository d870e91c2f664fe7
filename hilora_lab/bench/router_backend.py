"""A worker without a model, in a process of its own: `python -m hilora_lab.bench.router_backend`.

It answers at a speed that is set, over the worker's gRPC service for the router and over an OpenAI endpoint for
whoever is compared with it: every token has its due time from the arrival of its request on, and both doors wait for
the same one. Commands on standard input, one JSON object a line, answered on standard output.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import grpc

from hilora_lab.bench.router_speech import answer_commands, say
from hilora_rpc.v1 import worker_pb2, worker_pb2_grpc
from services.common import event_loop
from services.common.log import configure_logging
from services.common.rpc_server import RpcServer

ANSWER_WORD = " lorem"
"""Every token of every answer; nobody else on the way writes it, so that tokens can be counted in the bytes."""
MODEL = "bench"
"""What the OpenAI endpoint calls its model."""
_CATALOG_GENERATION = 2**62
"""Never behind any plan."""
_MAX_BODY = 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendSpeed:
    """How fast it answers."""

    ttft_seconds: float
    """From the arrival of a request to its first token."""
    itl_seconds: float
    """From a token to the next."""


class SpeedyBackend:
    """The answers behind both doors."""

    def __init__(self) -> None:
        self.speed = BackendSpeed(ttft_seconds=0.0, itl_seconds=0.0)
        self.num_running = 0
        self.num_finished = 0
        self.num_aborted = 0

    async def tokens(self, num_tokens: int) -> AsyncGenerator[int]:
        """The places of an answer's tokens, each when it is due."""
        speed = self.speed
        started = time.monotonic()
        self.num_running += 1
        is_whole = False
        try:
            for place in range(num_tokens):
                due = started + speed.ttft_seconds + place * speed.itl_seconds
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                yield place
            is_whole = True
        finally:
            self.num_running -= 1
            self.num_finished += is_whole
            self.num_aborted += not is_whole


class _WorkerDoor(worker_pb2_grpc.WorkerServiceServicer):
    """The worker's gRPC service."""

    def __init__(self, backend: SpeedyBackend) -> None:
        self._backend = backend

    async def Generate(  # noqa: N802  (the wire's name)
        self,
        request: worker_pb2.GenerateRequest,
        context: grpc.aio.ServicerContext[Any, Any],  # noqa: ARG002  (gRPC's signature)
    ) -> AsyncIterator[worker_pb2.GenerateEvent]:
        """Answer a request."""
        started = time.monotonic()
        num_tokens = request.sampling.max_tokens or 16
        yield worker_pb2.GenerateEvent(started=worker_pb2.Started(num_prompt_tokens=32))
        first = started
        async for place in self._backend.tokens(num_tokens):
            if place == 0:
                first = time.monotonic()
            yield worker_pb2.GenerateEvent(delta=worker_pb2.TextDelta(text=ANSWER_WORD, token_ids=[place]))
        yield worker_pb2.GenerateEvent(
            finished=worker_pb2.Finished(
                finish_reason=worker_pb2.FINISH_REASON_LENGTH,
                num_prompt_tokens=32,
                num_completion_tokens=num_tokens,
                budgets_used=request.plan.budgets,
                ttft_seconds=first - started,
                e2e_latency_seconds=time.monotonic() - started,
            )
        )

    async def Stats(  # noqa: N802  (the wire's name)
        self,
        request: worker_pb2.StatsRequest,  # noqa: ARG002  (gRPC's signature)
        context: grpc.aio.ServicerContext[Any, Any],  # noqa: ARG002  (the same)
    ) -> worker_pb2.StatsResponse:
        """How it is."""
        return worker_pb2.StatsResponse(
            worker_id="bench",
            base_model=MODEL,
            catalog_generation=_CATALOG_GENERATION,
            num_running=self._backend.num_running,
            max_num_seqs=1024,
            max_model_len=4096,
        )


class _OpenAIDoor:
    """`POST /v1/chat/completions` with `stream: true`, and as little HTTP around it as that takes."""

    def __init__(self, backend: SpeedyBackend) -> None:
        self._backend = backend

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = _content_length(head)
                body = await reader.readexactly(length)
                if b"/chat/completions" not in head.partition(b"\r\n")[0] or length > _MAX_BODY:
                    _refuse(writer)
                    break
                await self._answer(json.loads(body), writer)
        writer.close()

    async def _answer(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
            b"cache-control: no-cache\r\n\r\n"
        )
        created = int(time.time())
        writer.write(_event(_chunk(created, {"role": "assistant", "content": ""})))
        word = _event(_chunk(created, {"content": ANSWER_WORD}))
        async for _ in self._backend.tokens(int(body.get("max_tokens") or 16)):
            writer.write(word)
            await writer.drain()
        writer.write(_event(_chunk(created, {}, finish_reason="length")) + _framed(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        await writer.drain()


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def _refuse(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")


def _chunk(created: int, delta: dict[str, str], *, finish_reason: str | None = None) -> dict[str, Any]:
    return {
        "id": "chatcmpl-bench",
        "object": "chat.completion.chunk",
        "created": created,
        "model": MODEL,
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    }


def _event(chunk: dict[str, Any]) -> bytes:
    return _framed(b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n")


def _framed(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


async def run_backend() -> None:
    """Open both doors, say where, and follow the commands until standard input ends.

    A command is a `BackendSpeed` as JSON; the answer says what was finished and given up so far.
    """
    backend = SpeedyBackend()
    door = _WorkerDoor(backend)  # pyright: ignore[reportAbstractUsage]  (the rest answers UNIMPLEMENTED)
    rpc = RpcServer(
        host="127.0.0.1",
        port=0,
        register=[lambda server: worker_pb2_grpc.add_WorkerServiceServicer_to_server(door, server)],
        service_names=["hilora_rpc.v1.WorkerService"],
    )
    await rpc.start()
    http = await asyncio.start_server(_OpenAIDoor(backend).serve, "127.0.0.1", 0, backlog=1024)
    say({"rpc_address": rpc.address, "http_port": http.sockets[0].getsockname()[1]})

    async def obey(command: dict[str, Any]) -> dict[str, Any]:
        backend.speed = BackendSpeed(**command)
        counts = {"num_finished": backend.num_finished, "num_aborted": backend.num_aborted}
        return counts | asdict(backend.speed)

    await answer_commands(obey)
    http.close()
    await rpc.stop(grace_seconds=0)


if __name__ == "__main__":
    configure_logging(service="bench-backend", level="WARNING")
    event_loop.run(run_backend())
