"""Which versions a name has had, and which one it means.

A `Registration` is the durable record of one name; every change of it is a pure function from the record before to the
record after. The catalogue that routers and workers follow is derived from the records (`publication.py`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from hilora.access import AdapterAccess
from hilora.adapter import adapter_id_of
from hilora.errors import Conflict, UnknownAdapter
from hilora.version_selector import select_version

MAX_NOTED_JOBS = 16
"""Jobs that a version remembers; recovery asks within minutes."""


class RegistrationState(StrEnum):
    """What a name stands for."""

    READY = "READY"
    """In the catalogue."""
    QUARANTINED = "QUARANTINED"
    """Known, but no version of it was approved yet."""
    RETIRED = "RETIRED"
    """A tombstone: it keeps the history, and the generation at which the name left, so that numbers never go back."""


class VersionState(StrEnum):
    """Whether a version may be served."""

    READY = "READY"
    QUARANTINED = "QUARANTINED"
    """Waits for somebody to approve it."""
    REJECTED = "REJECTED"
    """Somebody decided against it."""
    COLLECTED = "COLLECTED"
    """Its files are gone; only the history knows it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Review:
    """A person's decision about a quarantined version."""

    is_approval: bool
    reviewer: str
    reason: str
    reviewed_at: float
    """Unix seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileFailure:
    """Why a version is without a profile."""

    num_attempts: int
    """Orders that failed for good, one after the other."""
    failed_at: float
    """Unix seconds of the last."""
    code: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterVersion:
    """One immutable version in the history of a name."""

    version: int
    """Counts the versions of the name from 1."""
    revision: str
    state: VersionState
    source_sha256: str
    """Digest of what was sent in, sample texts included."""
    created_at: float
    """Unix seconds of its first registration."""
    job_ids: tuple[str, ...]
    """Ingests that made it or added samples to it, newest last."""
    profile_ids: Mapping[str, str] = field(default_factory=dict[str, str])
    """Its profile under each encoder, by `encoder_id`; without one it can be named, never chosen."""
    profile_failure: ProfileFailure | None = None
    """What came of the attempts to make a profile; means nothing once there is one."""
    review: Review | None = None
    left_at: float = 0.0
    """Unix seconds at which the bare name ceased to mean it; 0 if it never did."""

    @property
    def available_at(self) -> float:
        """Unix seconds from which on requests could use it."""
        return self.review.reviewed_at if self.review is not None else self.created_at

    def noting(self, job_id: str) -> AdapterVersion:
        """The version after another job of its own ended."""
        if job_id in self.job_ids:
            return self
        return replace(self, job_ids=(*self.job_ids, job_id)[-MAX_NOTED_JOBS:])

    def profiled(self, encoder_id: str, profile_id: str) -> AdapterVersion:
        """The version with another profile under an encoder."""
        return replace(self, profile_ids={**self.profile_ids, encoder_id: profile_id})


@dataclass(frozen=True, kw_only=True, slots=True)
class Registration:
    """All versions of one name and the one it means; only this makes an adapter exist."""

    adapter_name: str
    versions: tuple[AdapterVersion, ...]
    """Oldest first, at least one."""
    current: int | None
    """Number of the version that the bare name means; None before the first approval."""
    is_retired: bool = False
    catalog_generation: int
    """The generation at which the name's last published change was, or was about to be, published; 0 before any."""
    changed_at: float
    """Unix seconds of the last change."""
    access: AdapterAccess = field(default_factory=AdapterAccess)
    tags: tuple[str, ...] = ()
    """What requests may ask for, sorted; the same for all versions."""

    @property
    def state(self) -> RegistrationState:
        """What the name stands for."""
        if self.is_retired:
            return RegistrationState.RETIRED
        return RegistrationState.READY if self.current is not None else RegistrationState.QUARANTINED

    @property
    def current_version(self) -> AdapterVersion | None:
        """The version that the bare name means, also of a retired name; None before the first approval."""
        return None if self.current is None else self.numbered(self.current)

    @property
    def servable_versions(self) -> tuple[AdapterVersion, ...]:
        """Every version that requests may name, the current one included; none of a retired name."""
        if self.is_retired:
            return ()
        return tuple(version for version in self.versions if version.state is VersionState.READY)

    def adapter_id(self, version: AdapterVersion) -> str:
        """Identity of a version under this name."""
        return adapter_id_of(self.adapter_name, version.revision)

    def made_by(self, job_id: str) -> AdapterVersion | None:
        """The version that a job made or added to."""
        return next((version for version in self.versions if job_id in version.job_ids), None)

    def numbered(self, version: int) -> AdapterVersion:
        """A version by its number. Raises UnknownAdapter (`unknown_adapter_version`)."""
        return self.selected(str(version))

    def selected(self, selector: str) -> AdapterVersion:
        """A version by number or prefix of its revision. Raises UnknownAdapter (`unknown_adapter_version`)."""
        found = select_version(self.versions, selector)
        if found is None:
            raise UnknownAdapter(
                f"{self.adapter_name} has no version {selector[:64]!r}, or several.",
                code="unknown_adapter_version",
                remedy=f"GET /v1/adapters/{self.adapter_name}/versions lists them.",
                place="version",
            )
        return found

    def with_revision(self, revision: str) -> AdapterVersion | None:
        """The version of a content that is still stored."""
        found = (v for v in self.versions if v.revision == revision and v.state is not VersionState.COLLECTED)
        return next(found, None)

    def replacing(self, version: AdapterVersion) -> Registration:
        """The record with one version changed."""
        versions = tuple(version if item.version == version.version else item for item in self.versions)
        return replace(self, versions=versions)

    def adding(self, version: AdapterVersion) -> Registration:
        """The record with a new version, numbered after all others; not current yet."""
        number = max(item.version for item in self.versions) + 1
        return replace(self, versions=(*self.versions, replace(version, version=number)))

    def pointing_to(self, version: AdapterVersion) -> Registration:
        """The record whose bare name means a version; a retired name comes back.

        Raises:
            Conflict: `version_not_servable`, for a version that is not READY.
        """
        if version.state is not VersionState.READY:
            raise Conflict(
                f"Version {version.version} of {self.adapter_name} is {version.state}.",
                code="version_not_servable",
                remedy="Approve it first, or choose a version that is READY.",
                place="version",
            )
        registration = self
        before = self.current_version
        if before is not None and before.version != version.version:
            registration = self.replacing(replace(before, left_at=time.time()))
        return replace(registration, current=version.version, is_retired=False)

    def reviewed(self, version: AdapterVersion, review: Review) -> Registration:
        """The record after a decision: an approved version becomes the current one, a rejected one is never served.

        Raises:
            Conflict: `version_not_reviewable`, for a version that waits for no decision, or was collected.
        """
        wanted = VersionState.READY if review.is_approval else VersionState.REJECTED
        if version.state not in {VersionState.QUARANTINED, VersionState.REJECTED} or version.state is wanted:
            raise Conflict(
                f"Version {version.version} of {self.adapter_name} is {version.state} already.",
                code="version_not_reviewable",
                remedy="Retire an adapter that is in use, or roll it back.",
                place="version",
            )
        decided = replace(version, state=wanted, review=review)
        changed = self.replacing(decided)
        return changed.pointing_to(decided) if review.is_approval else changed


def first_registration(adapter_name: str, version: AdapterVersion, *, access: AdapterAccess) -> Registration:
    """The record of a name that was never used before; its version is not current yet."""
    return Registration(
        adapter_name=adapter_name,
        versions=(version,),
        current=None,
        catalog_generation=0,
        changed_at=time.time(),
        access=access,
    )
