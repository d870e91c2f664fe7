"""One router for all tests of a module; its worker is put back into shape before each."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest
import pytest_asyncio

from tests.fakes.router_stack import RouterStack, running_router


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_stack() -> AsyncIterator[RouterStack]:
    async with running_router(max_body_bytes=256 * 1024) as stack:
        yield stack


@pytest.fixture
def stack(shared_stack: RouterStack) -> RouterStack:
    service = shared_stack.worker.service
    service.fails_with = None
    service.fails_after_tokens = 0
    service.seconds_per_token = 0.0
    service.requests.clear()
    return shared_stack


@pytest_asyncio.fixture(loop_scope="module")
async def client(stack: RouterStack) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="unused", max_retries=0) as opened:
        yield opened
