"""What the audit log keeps of a change. No secret ever enters it: a key is its name."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import StrEnum


class AuditOutcome(StrEnum):
    """How an attempt at a change ended."""

    DONE = "done"
    ACCEPTED = "accepted"
    """Its job goes on; another event says how that ended."""
    REFUSED = "refused"
    """Nothing was changed, and the caller is at fault."""
    FAILED = "failed"
    """It broke on our side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditEvent:
    """One attempt at a change."""

    principal: str
    """Name of the key that asked."""
    action: str
    """`add_adapter`, `retire_adapter`, `cancel_job`, ... ; `ingest` is the end of a job."""
    outcome: AuditOutcome
    door: str
    """`rest`, `grpc`, or `ingest`."""
    adapter: str | None = None
    """Name, or identity where the version is known."""
    job_id: str | None = None
    request_id: str = ""
    code: str | None = None
    """Why it was refused or failed."""
    at: float = field(default_factory=time.time)
    """Unix seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditPage:
    """Some events, newest first."""

    events: tuple[AuditEvent, ...]
    next_cursor: str | None
    """`before` of the next page; `None` if there are no older events."""
