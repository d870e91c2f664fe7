"""Every error of the HTTP door in OpenAI's shape, the framework's own included."""

from __future__ import annotations

import re

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from hilora.errors import HiloraError, InvalidInput
from services.common.errors import http_headers, mapping_of, openai_body
from services.common.log import get_logger

_log = get_logger(__name__)

_CODES = {400: "invalid_body", 404: "route_not_found", 405: "method_not_allowed", 413: "body_too_large"}
_PARAMETER_PART = re.compile(r"(?!(?:str|list|dict)$)\w+")
_MAX_MESSAGE_CHARS = 500


def install_error_handlers(app: FastAPI) -> None:
    """Answer every exception of `app` with an OpenAI error object."""
    app.add_exception_handler(HiloraError, _answer_hilora)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Exception, _answer_unexpected)


async def _answer_hilora(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HiloraError)
    return answer_hilora(error)


def answer_hilora(error: HiloraError) -> JSONResponse:
    """An error of ours as OpenAI's error object."""
    mapping = mapping_of(error)
    if mapping.http_status >= 500:
        _log.warning("request_failed", code=error.code, message=error.message)
    return JSONResponse(openai_body(error), status_code=mapping.http_status, headers=http_headers(error))


async def _answer_validation(_: Request, error: Exception) -> JSONResponse:
    """The first finding; the client's own input is not echoed."""
    assert isinstance(error, RequestValidationError)
    finding = error.errors()[0]
    kind = str(finding["type"])
    location = [str(part) for part in finding["loc"] if part != "body"]
    if kind == "json_invalid":
        translated = InvalidInput(
            f"The body is not JSON: {finding.get('ctx', {}).get('error', 'it cannot be parsed')}.", code="invalid_json"
        )
    elif kind == "extra_forbidden":
        parameter = ".".join(location)
        translated = InvalidInput(
            f"The parameter {parameter[:_MAX_MESSAGE_CHARS]!r} is not known.",
            code="unknown_parameter",
            remedy="Leave it out or correct its spelling.",
            place=parameter[:_MAX_MESSAGE_CHARS],
        )
    elif not location:
        translated = InvalidInput(
            "The body must be a JSON object.",
            code="invalid_body",
            remedy="Send a JSON object with Content-Type: application/json.",
        )
    else:
        # Between the names stand the branches of unions that were tried: ours to know, not the client's.
        names = [part for part in location if _PARAMETER_PART.fullmatch(part)]
        parameter = ".".join(names)[:_MAX_MESSAGE_CHARS]
        translated = InvalidInput(
            f"{parameter}: {str(finding['msg'])[:_MAX_MESSAGE_CHARS]}.",
            code="missing_parameter" if kind == "missing" else "invalid_parameter",
            place=parameter,
        )
    return JSONResponse(openai_body(translated), status_code=mapping_of(translated).http_status)


async def _answer_http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "invalid_request")
    body = openai_body(InvalidInput(str(error.detail), code=code))
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


async def _answer_unexpected(request: Request, error: Exception) -> JSONResponse:
    _log.error("request_failed_unexpectedly", path=request.url.path, exc_info=error)
    hidden = HiloraError("The server failed to answer this request.", remedy="Tell the operator the request id.")
    return JSONResponse(openai_body(hidden), status_code=500)
