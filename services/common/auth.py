"""Bearer keys on HTTP routes, compared in constant time."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Header, HTTPException
from pydantic import SecretStr

_LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})


def is_bearer_key(authorization: str, expected: SecretStr | None) -> bool:
    """Whether an `Authorization` value is `Bearer <expected>`; without an expected key every value is."""
    if expected is None:
        return True
    scheme, _, presented = authorization.partition(" ")
    is_equal = hmac.compare_digest(presented.strip().encode(), expected.get_secret_value().encode())
    return scheme.lower() == "bearer" and is_equal


def require_bearer_key(expected: SecretStr | None) -> Callable[..., Awaitable[None]]:
    """A FastAPI dependency that answers 401 unless the request carries `Authorization: Bearer <expected>`.

    `None` switches the check off; `refuse_open_door` makes sure that this happens on loopback only.
    """

    async def check(authorization: Annotated[str | None, Header()] = None) -> None:
        if not is_bearer_key(authorization or "", expected):
            raise HTTPException(
                401,
                detail="This route needs 'Authorization: Bearer <admin key>'.",
                headers={"WWW-Authenticate": "Bearer"},
            )

    return check


def refuse_open_door(*, host: str, key: SecretStr | None, setting: str) -> None:
    """Refuse to start an admin door that anybody on the network could open.

    Raises:
        ValueError: `host` is reachable from other machines and there is no key.
    """
    if key is None and host not in _LOOPBACK_HOSTS:
        raise ValueError(f"Binding the admin API to {host} needs a key: set {setting}, or bind to 127.0.0.1.")
