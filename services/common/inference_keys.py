"""Who may ask for answers: keys with a tenant and limits, known by their digests alone.

Apart from the keys of admin doors (`auth`): whoever may ask is not thereby allowed to change what answers.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter

from hilora.errors import InvalidInput, Unauthenticated
from services.common.auth import digest_of_key, has_passed
from services.common.watched_file import WatchedFile

KEY_PREFIX = "hlk-"
"""How keys of our making begin, so that scanners for leaked secrets can know them."""

_MAX_KEY_CHARACTERS = 1024
_MAX_COUNT = 2**53


class InferenceScope(StrEnum):
    """What a key opens."""

    INFER = "infer"
    """Generate, embed, tokenise, route."""
    READ = "read"
    """See models and traffic."""


class KeyLimits(BaseModel):
    """How much a key may ask for; None is no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests_per_minute: Annotated[int, Field(ge=1, le=_MAX_COUNT)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1, le=_MAX_COUNT)] | None = None
    """Of prompts and answers together."""
    tokens_per_day: Annotated[int, Field(ge=1, le=_MAX_COUNT)] | None = None
    max_concurrent: Annotated[int, Field(ge=1, le=_MAX_COUNT)] | None = None
    """Requests at the same time."""

    @property
    def is_unlimited(self) -> bool:
        """Whether nothing has to be counted."""
        return not any((self.requests_per_minute, self.tokens_per_minute, self.tokens_per_day, self.max_concurrent))


class InferenceKey(BaseModel):
    """One key, without the key itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]
    """Who holds it."""
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the key, in hex."""
    scopes: Annotated[frozenset[InferenceScope], Field(min_length=1)] = frozenset(InferenceScope)
    """What it opens."""
    tenant: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] | None = None
    """On whose behalf its requests come; without one they see what everybody sees."""
    limits: KeyLimits = KeyLimits()
    """How much it may ask for."""
    expires_at: AwareDatetime | None = None
    """From when on it is refused (ISO 8601 with an offset); never if missing."""


KEY_LIST = TypeAdapter(tuple[InferenceKey, ...])
"""Reads and writes a list of keys."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who a request comes from."""

    name: str
    """The key's name."""
    scopes: frozenset[InferenceScope]
    tenant: str | None = None
    limits: KeyLimits = field(default_factory=KeyLimits)


ANYBODY = Caller(name="anonymous", scopes=frozenset(InferenceScope))
"""Who asks where no keys are needed."""


class InferenceKeySource(Protocol):
    """Where keys come from; asked for every request."""

    def current(self) -> Sequence[InferenceKey]:
        """The keys that count now, the same object as long as they are the same. Never blocks for long."""
        ...


class InferenceKeyFile:
    """Keys in a file that is read again when it changes: one can be added or withdrawn without a restart.

    Args:
        path: a JSON list of keys, see `InferenceKey`.

    Raises:
        InvalidInput: `invalid_key_file`, if it cannot be read at the start.
    """

    def __init__(self, path: Path) -> None:
        self._file = WatchedFile(path, _read_keys)

    def current(self) -> Sequence[InferenceKey]:
        """See `InferenceKeySource.current`."""
        return self._file.current()


class CallerRing:
    """Tells who a presented key belongs to.

    Args:
        sources: where keys come from; a later one wins where two have the same key. Without any, everybody passes.
        default_limits: of keys that say nothing of their own, and of those who pass without a key.
    """

    def __init__(self, sources: Sequence[InferenceKeySource], *, default_limits: KeyLimits = KeyLimits()) -> None:  # noqa: B008  (a frozen value)
        self._sources = tuple(sources)
        self._default_limits = default_limits
        self._anybody = Caller(name=ANYBODY.name, scopes=ANYBODY.scopes, limits=default_limits)
        self._known: tuple[tuple[Sequence[InferenceKey], ...], Mapping[str, InferenceKey]] = ((), {})

    @property
    def admits_anyone(self) -> bool:
        """Whether requests without a key pass."""
        return not self._sources

    def authenticate(self, authorization: str) -> Caller:
        """Who sends an `Authorization` value.

        Keys are looked up by their digest: how long that takes says nothing about the key.

        Raises:
            Unauthenticated: `invalid_api_key`, if it is not `Bearer` and a known key that has not expired.
        """
        if self.admits_anyone:
            return self._anybody
        scheme, _, presented = authorization.partition(" ")
        found = self._by_digest().get(digest_of_key(presented.strip()[:_MAX_KEY_CHARACTERS]))
        is_expired = found is not None and found.expires_at is not None and has_passed(found.expires_at)
        if found is None or is_expired or scheme.lower() != "bearer":
            raise Unauthenticated(
                "This call needs 'Authorization: Bearer <key>'.",
                remedy="Use a key of this server that has not expired; the operator hands them out.",
            )
        limits = self._default_limits if found.limits.is_unlimited else found.limits
        return Caller(name=found.name, scopes=found.scopes, tenant=found.tenant, limits=limits)

    def _by_digest(self) -> Mapping[str, InferenceKey]:
        current = tuple(source.current() for source in self._sources)
        known, table = self._known
        if len(known) != len(current) or any(old is not new for old, new in zip(known, current, strict=True)):
            table = {key.sha256: key for keys in current for key in keys}
            self._known = (current, table)
        return table


def new_key() -> str:
    """A key that nobody can guess: 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def _read_keys(path: Path) -> tuple[InferenceKey, ...]:
    try:
        keys = KEY_LIST.validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        # pydantic repeats the input in its message, and somebody may have pasted a key there.
        reason = str(error) if isinstance(error, OSError) else "it is not a JSON list of keys"
        raise _unusable(path, reason) from error
    if len({key.name for key in keys}) < len(keys):
        raise _unusable(path, "two keys have one name")
    return keys


def _unusable(path: Path, reason: str) -> InvalidInput:
    return InvalidInput(
        f"The key file {path} cannot be used: {reason}.",
        code="invalid_key_file",
        remedy='Write a JSON list of {"name": ..., "sha256": ..., "tenant": ..., "limits": {...}}; '
        "`hilora keys create` makes one.",
        place=str(path),
    )
