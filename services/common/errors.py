"""The one table from the error tree to HTTP, to the OpenAI error body and to gRPC.

Over gRPC an error travels as a status plus a trailing `hilora-error-bin` entry (JSON), so that the same class, code
and remedy come out at the other end and reach the client of the REST API unchanged.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import cast

import grpc

from hilora import errors
from hilora.errors import Exhausted, HiloraError, Unavailable

ERROR_METADATA_KEY = "hilora-error-bin"
_MAX_METADATA_BYTES = 4096
"""gRPC peers take 8 KiB of metadata in all, in which bytes travel as base64."""


@dataclass(frozen=True, slots=True)
class ErrorMapping:
    """How one kind of error looks outside."""

    http_status: int
    openai_type: str
    grpc_status: grpc.StatusCode


# The first class of an error's method resolution order that stands here decides.
_MAPPINGS: dict[type[HiloraError], ErrorMapping] = {
    errors.UnknownAdapter: ErrorMapping(404, "invalid_request_error", grpc.StatusCode.NOT_FOUND),
    errors.LowConfidence: ErrorMapping(422, "invalid_request_error", grpc.StatusCode.FAILED_PRECONDITION),
    errors.InvalidAdapter: ErrorMapping(422, "invalid_request_error", grpc.StatusCode.INVALID_ARGUMENT),
    errors.InvalidInput: ErrorMapping(400, "invalid_request_error", grpc.StatusCode.INVALID_ARGUMENT),
    errors.AdapterAlreadyRegistered: ErrorMapping(409, "conflict_error", grpc.StatusCode.ALREADY_EXISTS),
    errors.Conflict: ErrorMapping(409, "conflict_error", grpc.StatusCode.FAILED_PRECONDITION),
    errors.Exhausted: ErrorMapping(429, "rate_limit_error", grpc.StatusCode.RESOURCE_EXHAUSTED),
    errors.Unavailable: ErrorMapping(503, "service_unavailable_error", grpc.StatusCode.UNAVAILABLE),
    errors.Unauthenticated: ErrorMapping(401, "authentication_error", grpc.StatusCode.UNAUTHENTICATED),
    errors.AccessDenied: ErrorMapping(403, "permission_error", grpc.StatusCode.PERMISSION_DENIED),
    errors.RequestAborted: ErrorMapping(499, "request_aborted_error", grpc.StatusCode.CANCELLED),
    errors.GenerationFailed: ErrorMapping(500, "server_error", grpc.StatusCode.INTERNAL),
    errors.HiloraError: ErrorMapping(500, "server_error", grpc.StatusCode.INTERNAL),
}

_CLASSES: dict[str, type[HiloraError]] = {
    value.__name__: value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, HiloraError)
}

# A peer that is not ours, or died before it could say more, leaves only a status.
_CLASS_OF_STATUS: dict[grpc.StatusCode, type[HiloraError]] = {
    grpc.StatusCode.NOT_FOUND: errors.UnknownAdapter,
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidInput,
    grpc.StatusCode.ALREADY_EXISTS: errors.AdapterAlreadyRegistered,
    grpc.StatusCode.FAILED_PRECONDITION: errors.Conflict,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Exhausted,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.Unavailable,
    grpc.StatusCode.CANCELLED: errors.RequestAborted,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
}


def mapping_of(error: HiloraError) -> ErrorMapping:
    """The outside form of an error's kind."""
    for cls in type(error).__mro__:
        if cls in _MAPPINGS:
            return _MAPPINGS[cls]
    raise AssertionError("HiloraError itself has a mapping")


def openai_body(error: HiloraError) -> dict[str, object]:
    """The OpenAI error object, with our `remedy`, and `details` where there are any, beside the standard fields."""
    fields: dict[str, object] = {
        "message": str(error),
        "type": mapping_of(error).openai_type,
        "param": error.place,
        "code": error.code,
        "remedy": error.remedy,
    }
    if error.details:
        fields["details"] = dict(error.details)
    return {"error": fields}


def http_headers(error: HiloraError) -> dict[str, str]:
    """Headers an error brings along (RFC 9110, 10.2.3 and 11.6.1): whole seconds of `Retry-After`, the kind of key."""
    if isinstance(error, Exhausted | Unavailable):
        return {"Retry-After": str(max(1, round(error.retry_after_seconds)))}
    if isinstance(error, errors.Unauthenticated):
        return {"WWW-Authenticate": "Bearer"}
    return {}


def error_to_dict(error: HiloraError) -> dict[str, object]:
    """All fields of an error as JSON values; `error_from_dict` reads it back."""
    fields: dict[str, object] = {
        "kind": type(error).__name__,
        "code": error.code,
        "message": error.message,
        "remedy": error.remedy,
        "place": error.place,
    }
    if isinstance(error, Exhausted | Unavailable):
        fields["retry_after_seconds"] = error.retry_after_seconds
    if error.details:
        fields["details"] = dict(error.details)
    return fields


def error_from_dict(fields: dict[str, object]) -> HiloraError:
    """The error that `error_to_dict` wrote; an unknown kind becomes the base class."""
    cls = _CLASSES.get(str(fields.get("kind")), HiloraError)
    arguments = {name: fields[name] for name in ("code", "remedy", "place") if isinstance(fields.get(name), str)}
    details = fields.get("details")
    more = cast("dict[str, object]", details) if isinstance(details, dict) else {}
    retry_after = fields.get("retry_after_seconds")
    if issubclass(cls, Exhausted | Unavailable) and isinstance(retry_after, int | float):
        error = cls(str(fields.get("message")), retry_after_seconds=float(retry_after), **arguments)  # pyright: ignore[reportArgumentType]
        return error.with_details(more)
    return cls(str(fields.get("message")), **arguments).with_details(more)  # pyright: ignore[reportArgumentType]


def error_metadata(error: HiloraError) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata that carries an error over gRPC; details go only where there is room for them."""
    fields = error_to_dict(error)
    encoded = json.dumps(fields).encode()
    if len(encoded) > _MAX_METADATA_BYTES:
        fields.pop("details", None)
        encoded = json.dumps(fields).encode()
    return ((ERROR_METADATA_KEY, encoded),)


def error_from_rpc(error: grpc.RpcError, *, peer: str) -> HiloraError:
    """The error a peer raised, or what its bare status stands for.

    Args:
        error: what the gRPC client raised; has `code`, `details` and `trailing_metadata`.
        peer: who was called, for the message.
    """
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    for key, value in error.trailing_metadata() or ():
        if key == ERROR_METADATA_KEY:
            return error_from_dict(json.loads(value))
    status = error.code()
    cls = _CLASS_OF_STATUS.get(status, HiloraError)
    return cls(f"{peer} answered {status.name}: {error.details()}")
