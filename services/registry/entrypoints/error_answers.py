"""Errors as answers of the REST door, all in the shape of OpenAI's error object."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from hilora.errors import HiloraError, InvalidInput
from services.common.errors import http_headers, mapping_of, openai_body

_UPLOAD_TOO_LARGE = "upload_too_large"
_CODES = {404: "unknown_route", 405: "method_not_allowed"}


def add_error_answers(app: FastAPI) -> None:
    """Have an application answer every error in one shape."""

    async def of_hilora(request: Request, error: HiloraError) -> JSONResponse:
        return answer_hilora_error(request, error)

    async def of_validation(request: Request, error: RequestValidationError) -> JSONResponse:
        findings = [(tuple(item["loc"]), str(item["msg"])) for item in error.errors()]
        return answer_hilora_error(request, invalid_fields(findings))

    async def of_framework(_: Request, error: HTTPException) -> JSONResponse:
        body = {
            "message": str(error.detail),
            "type": "invalid_request_error",
            "param": None,
            "code": _CODES.get(error.status_code),
            "remedy": None,
        }
        return JSONResponse({"error": body}, status_code=error.status_code, headers=error.headers)

    app.add_exception_handler(HiloraError, of_hilora)  # pyright: ignore[reportArgumentType]
    app.add_exception_handler(RequestValidationError, of_validation)  # pyright: ignore[reportArgumentType]
    app.add_exception_handler(HTTPException, of_framework)  # pyright: ignore[reportArgumentType]


def answer_hilora_error(request: Request, error: HiloraError) -> JSONResponse:
    """The answer of an error of ours; the request remembers it for the audit log."""
    request.scope.setdefault("state", {})["error"] = error
    # RFC 9110, 15.5.14: the one refusal that is about the size of the body alone.
    status = 413 if error.code == _UPLOAD_TOO_LARGE else mapping_of(error).http_status
    return JSONResponse(openai_body(error), status_code=status, headers=http_headers(error))


def invalid_fields(findings: list[tuple[tuple[int | str, ...], str]]) -> InvalidInput:
    """The refusal of a body or query that does not fit its schema: `(place, message)` of each finding."""
    place = ".".join(str(part) for part in findings[0][0]) or "body"
    return InvalidInput(
        f"The request is malformed: {place}: {findings[0][1]}.",
        code="invalid_request",
        remedy='Send {"name": ..., "source": {"hub": "owner/name"}, "samples": [...]}, or multipart/form-data.',
        place=place,
    )
