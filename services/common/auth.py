"""Who may use an admin door: named keys with scopes, known by their digests alone and compared in constant time.

A key is a long random text, so that one round of SHA-256 hides it: there is nothing to guess that a slow hash would
protect. An operator hands over digests (`AccessKey`), never keys.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, SecretStr, StringConstraints, TypeAdapter

from hilora.errors import InvalidInput, Unauthenticated
from services.common.watched_file import WatchedFile

_LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})
_MAX_KEY_CHARACTERS = 1024


class Scope(StrEnum):
    """What a key opens. None includes another: a key lists all it may do."""

    READ = "read"
    """Look at adapters, jobs and the audit log."""
    WRITE = "write"
    """Add, replace and retire adapters, and cancel jobs."""
    APPROVE = "approve"
    """Release adapters from quarantine, and whatever else decides about trust."""


ALL_SCOPES = frozenset(Scope)


@dataclass(frozen=True, kw_only=True, slots=True)
class Principal:
    """Who a request comes from."""

    name: str
    """The key's name; goes into the audit log."""
    scopes: frozenset[Scope]


class AccessKey(BaseModel):
    """One key of an admin door, without the key itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]
    """Who holds it; goes into the audit log."""
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the key, in hex."""
    scopes: Annotated[frozenset[Scope], Field(min_length=1)]
    """What it opens."""
    expires_at: AwareDatetime | None = None
    """From when on it is refused (ISO 8601 with an offset); never if missing."""

    @classmethod
    def of_secret(cls, name: str, key: SecretStr, scopes: frozenset[Scope] = ALL_SCOPES) -> AccessKey:
        """The record of a key that is given as such."""
        return cls(name=name, sha256=digest_of_key(key.get_secret_value()), scopes=scopes)


_KEYS = TypeAdapter(tuple[AccessKey, ...])


class KeySource(Protocol):
    """Where the keys come from; asked for every request."""

    def current(self) -> Sequence[AccessKey]:
        """The keys that count now. Never blocks for long."""
        ...


class FixedKeys:
    """Keys that stay as they are.

    Args:
        keys: all of them.
    """

    def __init__(self, keys: Sequence[AccessKey]) -> None:
        self._keys = tuple(keys)

    def current(self) -> Sequence[AccessKey]:
        """See `KeySource.current`."""
        return self._keys


class KeyFile:
    """Keys in a file that is read again when it changes: one can be added or withdrawn without a restart.

    Args:
        path: a JSON list of `{"name": ..., "sha256": ..., "scopes": [...], "expires_at": ...}`.

    Raises:
        InvalidInput: `invalid_key_file`, if it cannot be read at the start.
    """

    def __init__(self, path: Path) -> None:
        self._file = WatchedFile(path, _read_keys)

    def current(self) -> Sequence[AccessKey]:
        """See `KeySource.current`."""
        return self._file.current()


class KeyRing:
    """Tells who a presented key belongs to.

    Args:
        sources: where keys come from.
        is_anonymous_allowed: whether calls without a key pass, with every scope, if there is no source of keys at all.
    """

    def __init__(self, sources: Sequence[KeySource], *, is_anonymous_allowed: bool = False) -> None:
        self._sources = tuple(sources)
        self._is_anonymous_allowed = is_anonymous_allowed

    @property
    def admits_anyone(self) -> bool:
        """Whether calls without a key pass; a source that ran out of keys locks the door instead of opening it."""
        return self._is_anonymous_allowed and not self._sources

    def authenticate(self, authorization: str) -> Principal:
        """Who sends an `Authorization` value.

        Every key is compared, whichever fits, so that the time says nothing about which.

        Raises:
            Unauthenticated: `invalid_api_key`, if it is not `Bearer` and a known key that has not expired.
        """
        if self.admits_anyone:
            return Principal(name="anonymous", scopes=ALL_SCOPES)
        scheme, _, presented = authorization.partition(" ")
        digest = digest_of_key(presented.strip()[:_MAX_KEY_CHARACTERS])
        found: AccessKey | None = None
        for source in self._sources:
            for key in source.current():
                if hmac.compare_digest(digest, key.sha256):
                    found = key
        is_expired = found is not None and found.expires_at is not None and has_passed(found.expires_at)
        if found is None or is_expired or scheme.lower() != "bearer":
            raise Unauthenticated(
                "This call needs 'Authorization: Bearer <admin key>'.",
                remedy="Use a key of this server's admin_keys that has not expired; inference keys do not open it.",
            )
        return Principal(name=found.name, scopes=found.scopes)


def _read_keys(path: Path) -> tuple[AccessKey, ...]:
    try:
        return checked_keys(_KEYS.validate_json(path.read_bytes()))
    except (OSError, ValueError) as error:
        # pydantic repeats the input in its message, and somebody may have pasted a key there.
        reason = str(error) if isinstance(error, OSError) else "it is not a JSON list of keys"
        raise InvalidInput(
            f"The key file {path} cannot be used: {reason}.",
            code="invalid_key_file",
            remedy='Write a JSON list of {"name": ..., "sha256": ..., "scopes": ["read", "write", "approve"]}.',
            place=str(path),
        ) from error


def digest_of_key(key: str) -> str:
    """What is kept of a key: its SHA-256 in hex."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


def checked_keys(keys: Sequence[AccessKey]) -> tuple[AccessKey, ...]:
    """The keys, if their names tell them apart.

    Raises:
        ValueError: two have one name, and the audit log could not say who it was.
    """
    names = [key.name for key in keys]
    if len(set(names)) < len(names):
        raise ValueError("every key needs a name of its own")
    return tuple(keys)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host, as settings and `Host` headers name it (without the port)."""
    return host in _LOOPBACK_HOSTS


def refuse_open_door(*, host: str, has_keys: bool, is_anonymous_allowed: bool, setting: str) -> None:
    """Refuse to start an admin door that nobody, or anybody on the network, could open.

    Raises:
        ValueError: there is no key, and the door was not opened on purpose, on loopback.
    """
    if has_keys:
        return
    if not is_loopback(host):
        raise ValueError(f"Binding the admin API to {host} needs a key: set {setting}, or bind to 127.0.0.1.")
    if not is_anonymous_allowed:
        raise ValueError(
            f"The admin API needs a key: set {setting}, or allow everybody on this machine with "
            "HILORA_REGISTRY_ALLOW_ANONYMOUS_ADMIN=true."
        )


def has_passed(moment: datetime) -> bool:
    """Whether a moment is over."""
    return moment.timestamp() <= time.time()
