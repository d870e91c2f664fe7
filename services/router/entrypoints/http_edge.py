"""The outermost layer of the HTTP door: request ids, the body cap, one count per request.

Plain ASGI rather than a framework middleware: those hide a client's disconnect from streaming answers.
"""

from __future__ import annotations

import re
import time
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.common.log import get_logger
from services.common.tracing import Span, Tracer, enter_span, leave_span
from services.router.entrypoints.router_metrics import Outcome, RouterMetrics

_log = get_logger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_REQUEST_ID_HEADER = "X-Request-Id"
_ENDPOINTS = frozenset(
    {"/v1/completions", "/v1/chat/completions", "/v1/models", "/v1/route", "/v1/embeddings", "/tokenize", "/detokenize"}
)
_SAME = {"/v1/tokenize": "/tokenize", "/v1/detokenize": "/detokenize"}


class HttpEdge:
    """Wraps the application.

    Args:
        app: what answers.
        metrics: counts requests.
        max_body_bytes: longest request body.
        tracer: makes a span of each request; None makes none.
    """

    def __init__(
        self, app: ASGIApp, *, metrics: RouterMetrics, max_body_bytes: int, tracer: Tracer | None = None
    ) -> None:
        self._tracer = tracer
        self._app = app
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _request_id(headers.get(_REQUEST_ID_HEADER))
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["started_at"] = started = time.perf_counter()
        endpoint = endpoint_of(scope)
        span = self._begin_span(endpoint, scope, headers)
        token = None if span is None else enter_span(span)
        status = 500
        is_complete = False
        num_received = 0

        async def receive_capped() -> Message:
            nonlocal num_received
            message = await receive()
            num_received += len(message.get("body", b""))
            if num_received > self._max_body_bytes:
                raise self._too_large()
            return message

        async def send_marked(message: Message) -> None:
            nonlocal status, is_complete
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[_REQUEST_ID_HEADER] = request_id
            elif not message.get("more_body", False):
                is_complete = True
            await send(message)

        try:
            bound = {"request_id": request_id} | ({} if span is None else {"trace_id": span.trace_id})
            with structlog.contextvars.bound_contextvars(**bound):
                await self._app(scope, receive_capped, send_marked)
        finally:
            if token is not None:
                leave_span(token)
            if endpoint is not None:
                outcome = _outcome(status, has_failed=bool(state.get("has_failed")), is_complete=is_complete)
                seconds = time.perf_counter() - started
                self._metrics.count(endpoint, outcome, seconds=seconds)
                if span is not None:
                    _end_span(span, status, outcome)
                _log.info(
                    "request_ended",
                    request_id=request_id,
                    answer_id=state.get("answer_id"),
                    endpoint=endpoint,
                    status=status,
                    outcome=outcome.value,
                    seconds=round(seconds, 4),
                    **({} if span is None else {"trace_id": span.trace_id}),
                )

    def _begin_span(self, endpoint: str | None, scope: Scope, headers: Headers) -> Span | None:
        if self._tracer is None or endpoint is None:
            return None
        method = str(scope.get("method", ""))
        carrier = {key: value for key in ("traceparent", "tracestate") if (value := headers.get(key)) is not None}
        span = self._tracer.begin(f"{method} {endpoint}", carrier=carrier)
        span.set({"http.request.method": method, "http.route": endpoint})
        return span

    def _too_large(self) -> HTTPException:
        return HTTPException(413, detail=f"The body is longer than {self._max_body_bytes} bytes.")


def endpoint_of(scope: Scope) -> str | None:
    """The label of a request's endpoint; None for probes, scrapes and unknown paths, which are not counted."""
    path = str(scope["path"])
    if path.startswith("/v1/models/"):
        return "/v1/models"
    path = _SAME.get(path, path)
    return path if path in _ENDPOINTS else None


def _end_span(span: Span, status: int, outcome: Outcome) -> None:
    span.set({"http.response.status_code": status, "hilora.outcome": outcome.value})
    if outcome is Outcome.FAILED:
        span.fail(str(status))
    span.end()


def _request_id(presented: str | None) -> str:
    """The client's id if it can go into logs and headers as it is, else a new one."""
    if presented and _REQUEST_ID.fullmatch(presented):
        return presented
    return f"req-{uuid.uuid4().hex}"


def _outcome(status: int, *, has_failed: bool, is_complete: bool) -> Outcome:
    if has_failed:
        return Outcome.FAILED
    if not is_complete or status == 499:
        return Outcome.ABORTED if status < 500 or status == 499 else Outcome.FAILED
    if status == 429:
        return Outcome.EXHAUSTED
    if status >= 500:
        return Outcome.FAILED
    return Outcome.REFUSED if status >= 400 else Outcome.OK
