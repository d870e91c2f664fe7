"""What the hub's refusals mean here: which are final, which are worth another attempt, and what helps against each."""

from __future__ import annotations

from typing import Any

from hilora.errors import Exhausted, HiloraError, InvalidInput, Unavailable

_PLACE = "source.hub"
_MAX_RETRY_AFTER_SECONDS = 3600.0
_DEFAULT_RETRY_AFTER_SECONDS = 60.0
_CREDENTIAL = "HILORA_REGISTRY_HUB_TOKEN (or HF_TOKEN)"


def translated(error: Exception, reference: str) -> HiloraError:
    """Our error for anything that the client library raises.

    Its classes inherit from those of an HTTP library and of OSError; what is none of the known ones is the network.

    Args:
        error: what was raised.
        reference: what was asked for.
    """
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):  # before the next: it is one of those
        return _final(
            f"{reference} is gated, and this registry's account has not been let in.",
            "hub_gated",
            f"Accept the conditions on the repository's page with the account of {_CREDENTIAL}, or upload the files.",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return _final(
            f"{reference}: the repository has no such revision.",
            "hub_revision_not_found",
            "Give a branch, tag or commit that exists.",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return _final(
            f"{reference} does not exist on the hub, or is private.",
            "hub_not_found",
            f"Check the name; for a private repository give the registry a {_CREDENTIAL} that may read it.",
        )
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return _final(f"{reference} lost a file meanwhile.", "hub_not_found", "Try again with a commit that has it.")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return _final(
            "The registry runs with HF_HUB_OFFLINE set and cannot reach the hub.",
            "hub_offline",
            "Upload the files instead, or unset HF_HUB_OFFLINE.",
        )
    if isinstance(error, errors.HFValidationError):
        return _final(f"{reference} names no repository of the hub.", "invalid_hub_reference", "Write owner/name.")
    if isinstance(error, errors.HfHubHTTPError):
        by_status = _by_status(error, reference)
        if by_status is not None:
            return by_status
    return Unavailable(
        f"The hub does not answer for {reference}: {type(error).__name__}: {str(error)[:200]}",
        code="hub_unavailable",
        retry_after_seconds=_retry_after(error, otherwise=1.0),
        remedy="It is tried again; otherwise upload the files.",
        place=_PLACE,
    )


def _by_status(error: Any, reference: str) -> HiloraError | None:
    status = int(error.response.status_code)
    if status in {401, 403, 451}:
        return _final(
            f"The hub refuses {reference} to this registry ({status}).",
            "hub_access_denied",
            f"Replace {_CREDENTIAL}: it is expired, mistyped, or lacks the right to read this repository.",
        )
    if status == 429:
        return Exhausted(
            "The hub wants to be asked later.",
            code="hub_rate_limited",
            retry_after_seconds=_retry_after(error, otherwise=_DEFAULT_RETRY_AFTER_SECONDS),
            remedy=f"It is tried again; a {_CREDENTIAL} has a higher limit.",
            place=_PLACE,
        )
    if 400 <= status < 500 and status not in {408, 416}:
        return _final(f"The hub answers {status} for {reference}.", "hub_refused", "Check the reference.")
    return None


def _retry_after(error: Any, *, otherwise: float) -> float:
    """The seconds that the hub names, if it answered at all (RFC 9110, 10.2.3)."""
    response = getattr(error, "response", None)
    text = "" if response is None else str(response.headers.get("Retry-After", ""))
    return min(_MAX_RETRY_AFTER_SECONDS, float(text)) if text.isdecimal() else otherwise


def _final(message: str, code: str, remedy: str) -> InvalidInput:
    return InvalidInput(message, code=code, remedy=remedy, place=_PLACE)
