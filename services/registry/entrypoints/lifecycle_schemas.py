"""What the routes of an adapter's life after its ingest read and write."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from hilora.access import TrustTier
from services.registry.collection import CollectionReport
from services.registry.profile_orders import ProfileSource
from services.registry.publication import Published
from services.registry.registration import AdapterVersion, Registration, RegistrationState, VersionState

Selector = Annotated[str, StringConstraints(min_length=1, max_length=64)]
"""A version number, or at least eight digits of a revision."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SamplesBody(_Body):
    """`POST /v1/adapters/{name}/samples`."""

    samples: Annotated[list[str], Field(min_length=1, max_length=1000)]
    """More texts of the adapter's task."""


class ProfileBody(_Body):
    """`POST /v1/adapters/{name}/profile`; may be left out."""

    source: ProfileSource = ProfileSource.AUTO
    """What the profile is to be made of."""


class RollBackBody(_Body):
    """`POST /v1/adapters/{name}/rollback`; may be left out."""

    version: Selector | None = None
    """None takes the newest servable version before the current one."""


class TagsBody(_Body):
    """`PUT /v1/adapters/{name}/tags`."""

    tags: Annotated[list[str], Field(max_length=1000)]
    """All of them; what was there before is gone."""


class ReviewBody(_Body):
    """`POST /v1/adapters/{name}/approve` and `/reject`; may be left out."""

    reviewer: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    """Who decides; None takes the name of the key. The audit log names the key in any case."""
    reason: Annotated[str, StringConstraints(max_length=4096)] = ""
    version: Selector | None = None
    """None takes the newest version that waits."""


class AccessBody(_Body):
    """`PUT /v1/adapters/{name}/access`."""

    trust_tier: TrustTier
    visible_to: Annotated[list[str], Field(max_length=10_000)] = []
    """Tenants that may use the adapter; empty lets everybody."""


class AliasBody(_Body):
    """`PUT /v1/aliases/{alias}`."""

    target: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    """`name`, `name@3`, or `name@` with at least eight digits of a revision."""


class CollectBody(_Body):
    """`POST /v1/collections`; may be left out."""

    dry_run: bool = False


class ReviewView(BaseModel):
    """A decision about a version."""

    is_approval: bool
    reviewer: str
    reason: str
    reviewed_at: float


class VersionView(BaseModel):
    """One version of a name."""

    version: int
    adapter_id: str
    revision: str
    state: VersionState
    is_current: bool
    created_at: float
    source_sha256: str
    job_ids: list[str]
    profile_ids: dict[str, str]
    """By encoder."""
    review: ReviewView | None

    @classmethod
    def of(cls, registration: Registration, version: AdapterVersion) -> Self:
        """The view of a version of a name."""
        review = version.review
        return cls(
            version=version.version,
            adapter_id=registration.adapter_id(version),
            revision=version.revision,
            state=version.state,
            is_current=version.version == registration.current and not registration.is_retired,
            created_at=version.created_at,
            source_sha256=version.source_sha256,
            job_ids=list(version.job_ids),
            profile_ids=dict(version.profile_ids),
            review=ReviewView(
                is_approval=review.is_approval,
                reviewer=review.reviewer,
                reason=review.reason,
                reviewed_at=review.reviewed_at,
            )
            if review
            else None,
        )


class History(BaseModel):
    """`GET /v1/adapters/{name}/versions`."""

    object: Literal["adapter.history"] = "adapter.history"
    name: str
    state: RegistrationState
    trust_tier: TrustTier
    visible_to: list[str]
    versions: list[VersionView]
    """Oldest first."""

    @classmethod
    def of(cls, registration: Registration) -> Self:
        """The view of a name's record."""
        return cls(
            name=registration.adapter_name,
            state=registration.state,
            trust_tier=registration.access.trust_tier,
            visible_to=list(registration.access.visible_to),
            versions=[VersionView.of(registration, version) for version in registration.versions],
        )


class HistoryList(BaseModel):
    """`GET /v1/quarantine`."""

    object: Literal["list"] = "list"
    data: list[History]


class AdapterStateView(BaseModel):
    """What a name means after a change."""

    object: Literal["adapter.state"] = "adapter.state"
    name: str
    state: RegistrationState
    version: int | None
    adapter_id: str | None
    catalog_generation: int
    """The generation from which on it does."""

    @classmethod
    def of(cls, published: Published) -> Self:
        """The view of a change."""
        registration = published.registration
        current = registration.current_version
        return cls(
            name=registration.adapter_name,
            state=registration.state,
            version=current.version if current else None,
            adapter_id=registration.adapter_id(current) if current else None,
            catalog_generation=published.catalog_generation,
        )


class AliasView(BaseModel):
    """One alias."""

    object: Literal["alias"] = "alias"
    alias: str
    target: str | None
    """None once it is deleted."""
    catalog_generation: int | None = None
    """The generation from which on it holds, after a change."""


class AliasList(BaseModel):
    """`GET /v1/aliases`."""

    object: Literal["list"] = "list"
    data: list[AliasView]


class CollectionView(BaseModel):
    """`POST /v1/collections`."""

    object: Literal["collection"] = "collection"
    is_dry_run: bool
    versions: list[str]
    artifacts: list[str]
    profiles: list[str]
    freed_bytes: int

    @classmethod
    def of(cls, report: CollectionReport, *, is_dry_run: bool) -> Self:
        """The view of a round of garbage collection."""
        return cls(
            is_dry_run=is_dry_run,
            versions=list(report.versions),
            artifacts=list(report.artifacts),
            profiles=list(report.profiles),
            freed_bytes=report.freed_bytes,
        )
