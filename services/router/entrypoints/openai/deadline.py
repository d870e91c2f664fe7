"""How long a client waits for its answer."""

from __future__ import annotations

import math

from starlette.datastructures import Headers

from hilora.errors import InvalidInput

TIMEOUT_HEADER = "X-Request-Timeout"
"""Seconds that the client waits at most."""


def timeout_of(headers: Headers) -> float | None:
    """The seconds of the header; None where it is not sent.

    Raises:
        InvalidInput: `invalid_timeout`.
    """
    text = headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.0 < seconds < math.inf:
        raise InvalidInput(
            f"{text[:40]!r} is no time to wait.",
            code="invalid_timeout",
            remedy=f"Send seconds above 0 in {TIMEOUT_HEADER}, or leave it out.",
            place=TIMEOUT_HEADER,
        )
    return seconds
