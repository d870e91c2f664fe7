"""semantic-router's Python path behind an OpenAI endpoint: `PYTHON semantic_router_proxy.py ORDER.json`.

What a team writes that uses that library: a small application on its own web framework, which asks the library for a
route and passes the request on. It runs under the peer's interpreter, which has nothing of ours, so it imports nothing
of ours either.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from semantic_router import Route  # pyright: ignore[reportMissingImports]
from semantic_router.encoders import HuggingFaceEncoder  # pyright: ignore[reportMissingImports]
from semantic_router.routers import IndexedRouter  # pyright: ignore[reportMissingImports]


def make_app(order: dict[str, Any]) -> FastAPI:
    """The application.

    Args:
        order: `encoder`, a folder; `routes`, name to sample texts; `backend_port`, of an OpenAI endpoint on loopback.
    """
    routes = [Route(name=name, utterances=texts) for name, texts in order["routes"].items()]
    router = IndexedRouter(encoder=HuggingFaceEncoder(name=order["encoder"], device="cpu"), routes=routes)
    url = f"http://127.0.0.1:{order['backend_port']}/v1/chat/completions"

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(trust_env=False, timeout=60.0, limits=limits) as client:
            app.state.client = client
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/health")
    async def health() -> dict[str, int]:
        return {"routes": len(routes)}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> StreamingResponse:
        body = await request.json()
        choice = await router.acall(body["messages"][-1]["content"])
        upstream = app.state.client.build_request("POST", url, json=body)
        response = await app.state.client.send(upstream, stream=True)

        async def pieces() -> AsyncIterator[bytes]:
            try:
                async for piece in response.aiter_raw():
                    yield piece
            finally:
                await response.aclose()

        return StreamingResponse(
            pieces(), media_type="text/event-stream", headers={"x-route": getattr(choice, "name", None) or "none"}
        )

    return app


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    uvicorn.run(make_app(given), host="127.0.0.1", port=given["port"], log_level="warning")
