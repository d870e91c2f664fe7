"""One ingest as values: its request, its states, and the one table of allowed transitions."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import cast

from hilora.compression import Squeeze
from hilora.errors import HiloraError
from services.registry.validation_report import REPORT_KEY, ValidationReport, report_from_json


class IngestState(StrEnum):
    """Where an ingest, and the adapter it makes, stands."""

    PENDING = "PENDING"
    """Accepted, files safe on disk, waiting for the ingest process."""
    FETCHING = "FETCHING"
    """Bringing the files in from their source."""
    VALIDATING = "VALIDATING"
    """Checking files, tensors and shapes."""
    DECOMPOSING = "DECOMPOSING"
    """Computing both bases of the rank-one components."""
    PROFILING = "PROFILING"
    """Embedding the sample texts, storing and publishing."""
    READY = "READY"
    """In the catalogue."""
    QUARANTINED = "QUARANTINED"
    """Stored, held back until approved."""
    FAILED = "FAILED"
    """Refused or broken; the job's error says why."""
    CANCELLED = "CANCELLED"
    """Called off before it entered the catalogue; nothing of it is kept."""
    RETIRED = "RETIRED"
    """Taken out of the catalogue."""

    @property
    def is_terminal(self) -> bool:
        """Whether the ingest process has nothing left to do."""
        return self in _TERMINAL


_DONE = frozenset({IngestState.READY, IngestState.QUARANTINED})
_TERMINAL = _DONE | {IngestState.FAILED, IngestState.CANCELLED, IngestState.RETIRED}

# Every working state can fall back to PENDING: its process died, or a part it needs is away for the moment; and every
# one can be called off. PENDING and FETCHING reach READY or QUARANTINED directly when the very same content is
# registered already, or when a crash came between publishing and noting so. Sample texts alone go from FETCHING to
# PROFILING.
_TRANSITIONS: dict[IngestState, frozenset[IngestState]] = {
    IngestState.PENDING: frozenset(
        {
            IngestState.FETCHING,
            IngestState.READY,
            IngestState.QUARANTINED,
            IngestState.FAILED,
            IngestState.CANCELLED,
        }
    ),
    IngestState.FETCHING: frozenset(
        {
            IngestState.VALIDATING,
            IngestState.PROFILING,
            IngestState.PENDING,
            IngestState.READY,
            IngestState.QUARANTINED,
            IngestState.FAILED,
            IngestState.CANCELLED,
        }
    ),
    IngestState.VALIDATING: frozenset(
        {IngestState.DECOMPOSING, IngestState.PENDING, IngestState.FAILED, IngestState.CANCELLED}
    ),
    IngestState.DECOMPOSING: frozenset(
        {IngestState.PROFILING, IngestState.PENDING, IngestState.FAILED, IngestState.CANCELLED}
    ),
    IngestState.PROFILING: frozenset(
        {
            IngestState.READY,
            IngestState.QUARANTINED,
            IngestState.PENDING,
            IngestState.FAILED,
            IngestState.CANCELLED,
        }
    ),
    IngestState.READY: frozenset({IngestState.RETIRED}),
    IngestState.QUARANTINED: frozenset({IngestState.READY, IngestState.RETIRED}),
    IngestState.FAILED: frozenset(),
    IngestState.CANCELLED: frozenset(),
    IngestState.RETIRED: frozenset(),
}

_PROGRESS: dict[IngestState, float] = {
    IngestState.PENDING: 0.0,
    IngestState.FETCHING: 0.05,
    IngestState.VALIDATING: 0.2,
    IngestState.DECOMPOSING: 0.4,
    IngestState.PROFILING: 0.7,
}
_PROGRESS_END: dict[IngestState, float] = {
    IngestState.FETCHING: 0.2,
    IngestState.VALIDATING: 0.4,
    IngestState.DECOMPOSING: 0.7,
    IngestState.PROFILING: 0.99,
}
"""Where the share of the work stands at the end of a state."""


class SourceKind(StrEnum):
    """Where the files of an adapter come from."""

    UPLOAD = "upload"
    """Sent by the client; they lie in the staging folder from the start."""
    PATH = "path"
    """A folder on the registry's own file system."""
    HUB = "hub"
    """A repository of the HuggingFace Hub."""
    OBJECT = "object"
    """A folder or an archive in an object store."""
    URL = "url"
    """An archive on a web server."""
    SAMPLES = "samples"
    """More sample texts for an adapter that is registered already; they lie in the staging folder from the start."""
    PROFILE = "profile"
    """No files: a registered adapter is to get a profile of texts that the registry finds or makes itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Who asked for a change, for the audit log."""

    principal: str = "internal"
    """Name of the key; `internal` where the system itself asked."""
    request_id: str = ""
    """Identity of the call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestRequest:
    """What was asked for; lies beside the files, so that it outlives Redis."""

    job_id: str
    adapter_name: str
    source_kind: SourceKind
    source: str
    """File name of the upload, path of the folder, `owner/name[@revision]`, a URL, or, for a profile, the wanted
    `ProfileSource`."""
    is_replacement: bool
    """Whether another version of the same name may be replaced."""
    has_own_samples: bool
    """Whether the client sent the sample texts itself, beside the adapter's files."""
    created_at: float
    """Unix seconds."""
    squeeze: Squeeze | None = None
    """The compression that was asked for."""
    origin: Origin = field(default_factory=Origin)
    """Who asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestJob:
    """The observable side of one ingest."""

    job_id: str
    adapter_name: str
    state: IngestState
    progress: float
    """Share of the work done, 0 to 1."""
    detail: str
    """What it is doing, for a person."""
    adapter_id: str | None = None
    error: HiloraError | None = field(default=None, compare=False)
    report: ValidationReport | None = None
    """What the checks found, once they are done."""
    created_at: float
    updated_at: float
    due_at: float
    """When the ingest process should have taken it at the latest: later means that its message is lost."""

    def moved(self, state: IngestState, *, detail: str, now: float | None = None) -> IngestJob:
        """The job in its next state.

        Raises:
            ValueError: the transition table does not allow it.
        """
        if state is not self.state and state not in _TRANSITIONS[self.state]:
            raise ValueError(f"an ingest cannot go from {self.state} to {state}")
        return replace(
            self,
            state=state,
            detail=detail,
            progress=_PROGRESS.get(state, 1.0 if state in _DONE else self.progress),
            updated_at=time.time() if now is None else now,
        )

    def within(self, share: float, *, detail: str, now: float | None = None) -> IngestJob:
        """The job a part of the way through its present state.

        Args:
            share: how much of the state's work is done, 0 to 1; the job's progress never goes back.
            detail: what it is doing, for a person.
            now: Unix seconds.
        """
        start = _PROGRESS.get(self.state, self.progress)
        end = _PROGRESS_END.get(self.state, start)
        progress = max(self.progress, start + min(max(share, 0.0), 1.0) * (end - start))
        return replace(self, progress=progress, detail=detail, updated_at=time.time() if now is None else now)

    def ready(self, adapter_id: str) -> IngestJob:
        """The job after its adapter entered the catalogue."""
        return replace(self.moved(IngestState.READY, detail="registered"), adapter_id=adapter_id)

    def quarantined(self, adapter_id: str) -> IngestJob:
        """The job after its adapter was stored, to wait for somebody's approval."""
        detail = "waiting for approval"
        return replace(self.moved(IngestState.QUARANTINED, detail=detail), adapter_id=adapter_id)

    def failed(self, error: HiloraError) -> IngestJob:
        """The job after it was refused or broke."""
        report = self.report
        if REPORT_KEY in error.details:
            report = report_from_json(cast("Mapping[str, object]", error.details[REPORT_KEY]))
        return replace(self.moved(IngestState.FAILED, detail=error.message), error=error, report=report)

    def checked(self, report: ValidationReport) -> IngestJob:
        """The job once everything about its adapter was looked at."""
        return replace(self, report=report)

    def cancelled(self) -> IngestJob:
        """The job after it was called off."""
        return self.moved(IngestState.CANCELLED, detail="cancelled")

    def requeued(self, *, detail: str, due_at: float) -> IngestJob:
        """The job back at the start, expected to be taken before `due_at` (Unix seconds).

        What the attempt before found is no longer shown: the next one checks everything again.
        """
        return replace(self.moved(IngestState.PENDING, detail=detail), due_at=due_at, report=None)


def new_job_id() -> str:
    """A fresh identity: 32 hex digits, unguessable."""
    return uuid.uuid4().hex


def is_job_id(text: str) -> bool:
    """Whether a text has the form of `new_job_id`; anything else never touches a file name or a key."""
    return len(text) == 32 and all(char in "0123456789abcdef" for char in text)


def pending_job(request: IngestRequest, *, due_at: float) -> IngestJob:
    """The job of a request that was just accepted."""
    return IngestJob(
        job_id=request.job_id,
        adapter_name=request.adapter_name,
        state=IngestState.PENDING,
        progress=0.0,
        detail="waiting for the ingest process",
        created_at=request.created_at,
        updated_at=request.created_at,
        due_at=due_at,
    )
