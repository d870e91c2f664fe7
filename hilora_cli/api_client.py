"""The REST API of a running server, with its errors as ours."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

import httpx

from hilora.errors import (
    Conflict,
    Exhausted,
    HiloraError,
    InvalidInput,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    UnknownAdapter,
)

JsonObject = dict[str, Any]
UploadFile = tuple[str, tuple[str, bytes | BinaryIO]]
"""`(form field, (file name, content))`."""

_TIMEOUT_SECONDS = 120.0
_CONNECT_SECONDS = 5.0
_SILENCE_SECONDS = 60.0
"""A stream of events that shows no sign of life for this long is broken."""

_KIND_OF_STATUS: dict[int, type[HiloraError]] = {
    401: Unauthenticated,
    403: PermissionDenied,
    404: UnknownAdapter,
    409: Conflict,
    429: Exhausted,
    503: Unavailable,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamEvent:
    """One server-sent event."""

    event: str
    event_id: str | None
    data: JsonObject


class ApiClient:
    """A client of one server; an asynchronous context manager.

    Args:
        url: where the server listens.
        api_key: sent as a bearer token, if given.
        transport: how requests travel; for tests.
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._url = url.rstrip("/")
        self._http = httpx.AsyncClient(
            base_url=self._url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(_TIMEOUT_SECONDS, connect=_CONNECT_SECONDS),
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def get(self, path: str) -> JsonObject:
        """The JSON answer of a GET. Raises HiloraError with what the server said."""
        return await self._call("GET", path)

    async def post(self, path: str, body: JsonObject, *, headers: Mapping[str, str] | None = None) -> JsonObject:
        """The JSON answer of a POST with a JSON body, and perhaps further headers. Raises like `get`."""
        return await self._call("POST", path, json=body, headers=dict(headers or {}))

    async def put(self, path: str, body: JsonObject) -> JsonObject:
        """The JSON answer of a PUT with a JSON body. Raises like `get`."""
        return await self._call("PUT", path, json=body)

    async def delete(self, path: str) -> JsonObject:
        """The JSON answer of a DELETE, empty if there is none. Raises like `get`."""
        return await self._call("DELETE", path)

    async def upload(
        self, path: str, *, fields: JsonObject, files: Sequence[UploadFile], headers: Mapping[str, str] | None = None
    ) -> JsonObject:
        """The JSON answer of a multipart POST. Raises like `get`.

        Args:
            path: route.
            fields: plain form fields.
            files: content as bytes, or as an open file that is read while it is sent.
            headers: further ones.
        """
        return await self._call("POST", path, data=fields, files=list(files), headers=dict(headers or {}))

    async def events(self, path: str, *, last_event_id: str | None = None) -> AsyncGenerator[StreamEvent | None]:
        """Named server-sent events until the server ends the stream; `None` for each sign of life in between.

        Raises:
            HiloraError: like `get`, also midway.
        """
        headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        timeout = httpx.Timeout(_SILENCE_SECONDS, connect=_CONNECT_SECONDS)
        fields: dict[str, str] = {}
        try:
            async with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
                if not response.is_success:
                    await response.aread()
                    raise _refusal(response)
                async for line in response.aiter_lines():
                    if line.startswith(":"):
                        yield None
                    elif line:
                        name, _, value = line.partition(": ")
                        fields[name] = value
                    elif "data" in fields:
                        data = json.loads(fields["data"])
                        if fields.get("event") == "error":
                            raise _error_of(data["error"], kind=HiloraError)
                        yield StreamEvent(event=fields.get("event", "message"), event_id=fields.get("id"), data=data)
                        fields = {}
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    async def stream(
        self, path: str, body: JsonObject, *, headers: Mapping[str, str] | None = None
    ) -> AsyncGenerator[JsonObject]:
        """The objects of a stream of server-sent events, until `[DONE]`. Raises like `get`, also midway."""
        try:
            async with self._http.stream("POST", path, json=body, headers=dict(headers or {})) as response:
                if not response.is_success:
                    await response.aread()
                    raise _refusal(response)
                async for line in response.aiter_lines():
                    # Comments and empty lines between events say nothing; the final event ends the stream anyway.
                    if not line.startswith("data: ") or line == "data: [DONE]":
                        continue
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        raise _error_of(event["error"], kind=HiloraError)
                    yield event
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    async def _call(self, method: str, path: str, **arguments: Any) -> JsonObject:
        try:
            response = await self._http.request(method, path, **arguments)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if not response.is_success:
            raise _refusal(response)
        try:
            return cast("JsonObject", response.json()) if response.content else {}
        except ValueError as error:
            raise _unexpected(response) from error

    def _unreachable(self, error: httpx.TransportError) -> HiloraError:
        if isinstance(error, httpx.UnsupportedProtocol):
            return InvalidInput(
                f"{self._url!r} is not an address of a server.",
                code="invalid_url",
                remedy="Write it like http://127.0.0.1:8000.",
                place="--url",
            )
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return Unavailable(
                f"No server answers at {self._url}.",
                code="server_unreachable",
                remedy="Start one with `hilora demo` or `hilora serve`, or give its address with --url.",
                place=self._url,
            )
        return Unavailable(
            f"The connection to {self._url} broke: {error or type(error).__name__}.",
            code="connection_broken",
            remedy="Look at the server's log, and try again.",
            place=self._url,
        )


def _refusal(response: httpx.Response) -> HiloraError:
    try:
        return _error_of(response.json()["error"], kind=_KIND_OF_STATUS.get(response.status_code, HiloraError))
    except (ValueError, KeyError, TypeError):
        return _unexpected(response)


def _unexpected(response: httpx.Response) -> HiloraError:
    """An answer that cannot be one of ours."""
    return HiloraError(
        f"{response.request.url} answered {response.status_code}: {response.text[:200] or response.reason_phrase}",
        code="unexpected_answer",
        remedy="Check that the address is a HiLoRA server's.",
    )


def _error_of(fields: JsonObject, *, kind: type[HiloraError]) -> HiloraError:
    """The error of an OpenAI error body, whose message repeats the remedy for clients that show nothing else."""
    remedy = fields.get("remedy")
    message = str(fields.get("message", "The server gave no reason."))
    if remedy:
        message = message.removesuffix(f" {remedy}")
    return kind(message, code=fields.get("code"), remedy=remedy, place=fields.get("param"))
