"""Every error the system raises on purpose: one tree, one stable code each.

    HiloraError
    ├── InvalidInput                    the caller must change the request
    │   ├── InvalidAdapter              the uploaded LoRA cannot be served
    │   │   ├── UnsupportedAdapterFeature
    │   │   ├── AdapterShapeMismatch
    │   │   └── UnsafeArchive
    │   ├── UnknownAdapter              no such adapter, model, strategy, plan or job
    │   ├── LowConfidence               no adapter explains the text, and the caller wants none that does not
    │   └── InvalidSamplingParams
    ├── Conflict                        the request is sound, the state is not
    │   ├── AdapterAlreadyRegistered
    │   └── StaleCatalogGeneration
    ├── Exhausted                       try again after `retry_after_seconds`
    │   ├── RateLimited                 a caller's own limit
    │   ├── QueueFull
    │   └── RocPoolFull
    ├── Unavailable                     a part of the system is away; try again
    │   ├── NoWorkerAvailable
    │   └── RegistryUnavailable
    ├── AccessDenied                    who asks may not do this
    │   ├── Unauthenticated             no key, or one that is not known
    │   └── PermissionDenied            a known key without the scope it takes
    ├── RequestAborted                  the request was cancelled, by its client or by a shutdown
    └── GenerationFailed                this one request failed inside the engine

A class says *what kind* of answer the caller gets; `code` says exactly which rule was broken and never
changes once published. `services/common/errors.py` is the only place that maps the tree to HTTP, to the
OpenAI error body and to gRPC statuses; Celery retries exactly `Exhausted` and `Unavailable`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self


class HiloraError(Exception):
    """Base of the tree.

    Args:
        message: what was wrong and where, in one sentence.
        code: a stable snake_case code; defaults to the class's own.
        remedy: what to do about it, in one sentence.
        place: the file, field, module or parameter the error is about.
    """

    default_code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        remedy: str | None = None,
        place: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = _encodable(message)
        self.code = code or self.default_code
        self.remedy = remedy
        self.place = None if place is None else _encodable(place)
        self.details: Mapping[str, object] = {}
        """More about it, as JSON values: all findings of a refused adapter."""

    def with_details(self, details: Mapping[str, object]) -> Self:
        """The same error, with more to say."""
        self.details = details
        return self

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}" if self.remedy else self.message


def _encodable(text: str) -> str:
    """A stranger's name may hold halves of characters, and no answer and no record can be written with one."""
    return text.encode("utf-8", "backslashreplace").decode()


class InvalidInput(HiloraError):
    """The request itself is wrong; sending it again unchanged fails again."""

    default_code = "invalid_input"


class InvalidAdapter(InvalidInput):
    """An uploaded LoRA is malformed, unsafe or has no effect."""

    default_code = "invalid_adapter"


class UnsupportedAdapterFeature(InvalidAdapter):
    """A well-formed adapter uses a feature that is not a sum of rank-one terms, or is not supported yet."""

    default_code = "unsupported_adapter_feature"


class AdapterShapeMismatch(InvalidAdapter):
    """A factor's shape does not fit the module of the served base model."""

    default_code = "adapter_shape_mismatch"


class UnsafeArchive(InvalidAdapter):
    """An archive tries to leave its folder, hides a link, or unpacks to more than it may."""

    default_code = "unsafe_archive"


class UnknownAdapter(InvalidInput):
    """A name refers to nothing that is registered."""

    default_code = "unknown_adapter"


class LowConfidence(InvalidInput):
    """No adapter explains the text, and an answer without one that does is not wanted."""

    default_code = "low_confidence"


class InvalidSamplingParams(InvalidInput):
    """A sampling parameter is outside its range."""

    default_code = "invalid_sampling_params"


class Conflict(HiloraError):
    """The request is well-formed but contradicts the current state."""

    default_code = "conflict"


class AdapterAlreadyRegistered(Conflict):
    """The name is taken by an adapter with other content."""

    default_code = "adapter_already_registered"


class StaleCatalogGeneration(Conflict):
    """A plan refers to an adapter that this catalogue generation no longer, or not yet, holds."""

    default_code = "stale_catalog_generation"


class Exhausted(HiloraError):
    """A limit is reached for now.

    Args:
        retry_after_seconds: when trying again is sensible.
    """

    default_code = "exhausted"

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: float = 1.0,
        code: str | None = None,
        remedy: str | None = None,
        place: str | None = None,
    ) -> None:
        super().__init__(message, code=code, remedy=remedy, place=place)
        self.retry_after_seconds = retry_after_seconds


class RateLimited(Exhausted):
    """A caller asked for more than it may in this time."""

    default_code = "rate_limit_exceeded"


class QueueFull(Exhausted):
    """The engine's waiting queue is at its limit."""

    default_code = "queue_full"


class RocPoolFull(Exhausted):
    """No room for a plan's rank-one components while running requests hold the rest."""

    default_code = "roc_pool_full"


class Unavailable(HiloraError):
    """A part of the system cannot be reached or is not ready.

    Args:
        retry_after_seconds: when trying again is sensible.
    """

    default_code = "unavailable"

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: float = 1.0,
        code: str | None = None,
        remedy: str | None = None,
        place: str | None = None,
    ) -> None:
        super().__init__(message, code=code, remedy=remedy, place=place)
        self.retry_after_seconds = retry_after_seconds


class NoWorkerAvailable(Unavailable):
    """No live worker is at the plan's catalogue generation."""

    default_code = "no_worker_available"


class RegistryUnavailable(Unavailable):
    """The registry, or the store behind it, does not answer."""

    default_code = "registry_unavailable"


class AccessDenied(HiloraError):
    """Whoever asks may not do this."""

    default_code = "access_denied"


class Unauthenticated(AccessDenied):
    """The call carries no key, or one that is unknown or expired."""

    default_code = "invalid_api_key"


class PermissionDenied(AccessDenied):
    """The key is known, but lacks the scope that the call takes."""

    default_code = "insufficient_scope"


class RequestAborted(HiloraError):
    """The request was cancelled before it finished."""

    default_code = "request_aborted"


class GenerationFailed(HiloraError):
    """The engine could not finish this request; others were not affected."""

    default_code = "generation_failed"
