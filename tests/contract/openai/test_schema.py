"""The OpenAPI document and the server agree: requests made from the document are answered as it says, never with 5xx.

schemathesis makes the requests: valid ones, and ones that break the document in one place each.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from starlette.testclient import TestClient

from services.router.bootstrap import build_router
from services.router.settings import RouterSettings
from tests.fakes.router_encoder import HashEncoder
from tests.fakes.router_stack import running_router

_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]
_MAX_EXAMPLES = 25


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A router on a loop of its own: schemathesis asks from this thread, and waits."""
    told: list[str] = []
    is_there, may_end = threading.Event(), threading.Event()

    async def run() -> None:
        async with running_router() as stack:
            told.append(stack.url)
            is_there.set()
            await asyncio.to_thread(may_end.wait)

    thread = threading.Thread(target=asyncio.run, args=(run(),), name="router")
    thread.start()
    is_there.wait()
    yield told[0]
    may_end.set()
    thread.join()


def _document() -> dict[str, Any]:
    """The document of a router that has not started; it depends on no setting."""
    router = build_router(RouterSettings(rpc_port=0, rest_port=0), load_encoder=HashEncoder)
    answer = TestClient(router.rest_app).get("/openapi.json")
    assert answer.status_code == 200, answer.text
    return answer.json()


schema = schemathesis.openapi.from_dict(_document())


@schema.parametrize()
@settings(
    max_examples=_MAX_EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
def test_every_operation_answers_as_documented(case: schemathesis.Case, url: str) -> None:
    case.call_and_validate(base_url=url, checks=_CHECKS, timeout=30)
