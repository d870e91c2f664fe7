"""The sentence encoder raises, or does not return."""

from __future__ import annotations

import threading
import time

import httpx
import pytest

from tests.builders.patience import patient
from tests.fakes.router_stack import TASK_WORDS, running_router

PROMPT = f"{TASK_WORDS['capitals']} of somewhere"


async def ask(stack, model, *, headers=None):
    async with httpx.AsyncClient(base_url=stack.url, timeout=patient(30), trust_env=False) as client:
        return await client.post("/v1/completions", json={"model": model, "prompt": PROMPT}, headers=headers)


class Fault:
    """What an encoder does instead of encoding, until it is mended."""

    def __init__(self, encoder, *, hangs: bool) -> None:
        self._encode = encoder.encode
        self._hangs = hangs
        self._is_mended = threading.Event()
        encoder.encode = self

    def __call__(self, texts):
        if not self._is_mended.is_set():
            if not self._hangs:
                raise RuntimeError("out of memory")
            self._is_mended.wait()
        return self._encode(texts)

    def mend(self) -> None:
        self._is_mended.set()


class TestEncoder:
    @pytest.mark.parametrize(("hangs", "code"), [(False, "encoder_failed"), (True, "encoder_timeout")])
    async def test_automatic_requests_get_a_clear_error_and_named_models_are_answered(self, hangs, code):
        async with running_router(encoder_timeout_seconds=0.5) as stack:
            fault = Fault(stack.encoder, hangs=hangs)
            try:
                refused = await ask(stack, "auto")
                named = [await ask(stack, model) for model in ("capitals", "base")]
            finally:
                fault.mend()
            answered = await ask(stack, "auto")

        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == code
        assert float(refused.headers["Retry-After"]) > 0
        assert [answer.status_code for answer in named] == [200, 200]
        assert answered.status_code == 200

    async def test_the_client_s_own_time_out_holds_too(self):
        async with running_router() as stack:
            fault = Fault(stack.encoder, hangs=True)
            started = time.monotonic()
            try:
                refused = await ask(stack, "auto", headers={"X-Request-Timeout": "0.5"})
                assert time.monotonic() - started < patient(5.0)
            finally:
                fault.mend()

        assert refused.json()["error"]["code"] == "request_timeout"
