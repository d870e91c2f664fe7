"""What the REST door reads and writes."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from hilora.access import TrustTier
from hilora.finding import Severity
from hilora.update_statistics import UpdateStatistics
from services.registry.artifact import ArtifactManifest
from services.registry.audit import AuditEvent, AuditOutcome
from services.registry.catalog_entry import CatalogEntry
from services.registry.entrypoints.confusability_schemas import StatisticsView
from services.registry.entrypoints.squeeze_option import SqueezeOption
from services.registry.job import IngestJob, IngestState, SourceKind
from services.registry.validation_report import ValidationReport


class SourceReference(BaseModel):
    """Where the registry finds the files itself: exactly one of these."""

    model_config = ConfigDict(extra="forbid")

    hub: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    """`owner/name` or `owner/name@revision`."""
    path: Annotated[str, StringConstraints(min_length=1, max_length=4096)] | None = None
    """A folder or an archive where the operator allows it."""
    object: Annotated[str, StringConstraints(min_length=1, max_length=2048)] | None = None
    """`s3://bucket/folder`, or an archive there; `gs://` and `az://` likewise."""
    url: Annotated[str, StringConstraints(min_length=1, max_length=2048)] | None = None
    """An archive on a web server that the operator allows."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if len(self._given()) != 1:
            raise ValueError("give exactly one of hub, path, object and url")
        return self

    @property
    def kind(self) -> SourceKind:
        """Which of them it is."""
        return next(iter(self._given()))

    @property
    def reference(self) -> str:
        """The one that is given."""
        return next(iter(self._given().values()))

    def _given(self) -> dict[SourceKind, str]:
        fields = {
            SourceKind.HUB: self.hub,
            SourceKind.PATH: self.path,
            SourceKind.OBJECT: self.object,
            SourceKind.URL: self.url,
        }
        return {kind: reference for kind, reference in fields.items() if reference is not None}


class AddAdapterBody(BaseModel):
    """`POST /v1/adapters` with a JSON body."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = None
    source: SourceReference
    samples: Annotated[list[str], Field(max_length=1000)] = []
    """Texts of the adapter's task; empty if the source has a `samples.jsonl`."""
    replace: bool = False
    """Whether another version of the name may be replaced."""
    squeeze: SqueezeOption | None = None
    """Compress the adapter: `{"rank": n}`, or the share of each module's energy to keep, `{"energy": x}`."""


class ErrorView(BaseModel):
    """Why an ingest failed."""

    code: str
    message: str
    remedy: str | None
    place: str | None


class FindingView(BaseModel):
    """One thing that was found about an adapter."""

    code: str
    severity: Severity
    place: str
    message: str
    remedy: str


class ReportView(BaseModel):
    """Everything that was found about an adapter, errors first."""

    findings: list[FindingView]
    num_omitted: int
    """Errors beyond those that are listed."""

    @classmethod
    def of(cls, report: ValidationReport | None) -> ReportView | None:
        """The view of a report, where there is one."""
        return cls.model_validate(report.to_json()) if report else None


class JobView(BaseModel):
    """One ingest."""

    object: Literal["ingest.job"] = "ingest.job"
    job_id: str
    adapter_name: str
    adapter_id: str | None
    state: IngestState
    progress: float
    detail: str
    error: ErrorView | None
    report: ReportView | None
    """What the checks found; null until they are done."""
    created_at: float
    updated_at: float
    is_cancel_requested: bool = False
    """Whether it is to stop at its next safe point."""

    @classmethod
    def of(cls, job: IngestJob, *, is_cancel_requested: bool = False) -> Self:
        """The view of a job."""
        error = job.error
        return cls(
            job_id=job.job_id,
            adapter_name=job.adapter_name,
            adapter_id=job.adapter_id,
            state=job.state,
            progress=job.progress,
            detail=job.detail,
            error=ErrorView(code=error.code, message=error.message, remedy=error.remedy, place=error.place)
            if error
            else None,
            report=ReportView.of(job.report),
            created_at=job.created_at,
            updated_at=job.updated_at,
            is_cancel_requested=is_cancel_requested,
        )


class JobList(BaseModel):
    """`GET /v1/jobs`."""

    object: Literal["list"] = "list"
    data: list[JobView]
    """Newest first."""


class AdapterView(BaseModel):
    """One registered adapter."""

    object: Literal["adapter"] = "adapter"
    name: str
    adapter_id: str
    revision: str
    state: Literal["READY"] = "READY"
    lora_rank: int
    num_modules: int
    component_bytes: int
    catalog_generation: int
    created_at: float
    base_model: str
    encoder_id: str
    samples_source: str
    num_samples: int
    version: int
    profile_id: str
    trust_tier: TrustTier
    visible_to: list[str]
    tags: list[str]

    @classmethod
    def of(cls, entry: CatalogEntry) -> Self:
        """The view of an entry."""
        return cls(
            name=entry.adapter_name,
            adapter_id=entry.adapter_id,
            revision=entry.revision,
            lora_rank=entry.lora_rank,
            num_modules=entry.num_modules,
            component_bytes=entry.component_bytes,
            catalog_generation=entry.catalog_generation,
            created_at=entry.created_at,
            base_model=entry.base_model,
            encoder_id=entry.encoder_id,
            samples_source=entry.samples_source,
            num_samples=entry.num_samples,
            version=entry.version,
            profile_id=entry.profile_id,
            trust_tier=entry.access.trust_tier,
            visible_to=list(entry.access.visible_to),
            tags=list(entry.tags),
        )


class ProvenanceView(BaseModel):
    """Where the files came from."""

    source_kind: str
    source: str
    source_sha256: str
    declared_base_model: str | None
    source_format: str
    """The method the files belong to; `peft` for a plain LoRA."""
    squeeze: SqueezeOption | None
    energy_kept: float | None
    """Share of the update's energy that a compression left."""


class AdapterDetails(AdapterView):
    """`GET /v1/adapters/{name}`."""

    provenance: ProvenanceView
    files: dict[str, str]
    """sha256 by file name."""
    report: ReportView | None
    """What was found when it was ingested."""
    update: StatisticsView
    """How large the update is, and over how many directions it spreads."""

    @classmethod
    def with_manifest(
        cls,
        entry: CatalogEntry,
        manifest: ArtifactManifest,
        report: ValidationReport | None,
        statistics: UpdateStatistics,
    ) -> Self:
        """The view of an entry and what is stored for it."""
        origin = manifest.provenance
        return cls(
            **AdapterView.of(entry).model_dump(),
            provenance=ProvenanceView(
                source_kind=origin.source_kind,
                source=origin.source,
                source_sha256=origin.source_sha256,
                declared_base_model=origin.declared_base_model,
                source_format=origin.source_format,
                squeeze=SqueezeOption(rank=origin.squeeze.rank, energy=origin.squeeze.energy)
                if origin.squeeze
                else None,
                energy_kept=origin.energy_kept,
            ),
            report=ReportView.of(report),
            files=dict(manifest.files),
            update=StatisticsView.of(statistics),
        )


class AdapterList(BaseModel):
    """`GET /v1/adapters`."""

    object: Literal["list"] = "list"
    catalog_generation: int
    data: list[AdapterView]
    """By name."""
    has_more: bool = False
    next_after: str | None = None
    """`after` of the next page."""


class Retired(BaseModel):
    """`DELETE /v1/adapters/{name}`."""

    object: Literal["adapter.retired"] = "adapter.retired"
    name: str
    state: Literal["RETIRED"] = "RETIRED"
    catalog_generation: int
    """The generation from which on the adapter is gone."""


class AuditEventView(BaseModel):
    """One line of the audit log."""

    at: float
    """Unix seconds."""
    principal: str
    """Name of the key that asked."""
    action: str
    outcome: AuditOutcome
    code: str | None
    adapter: str | None
    job_id: str | None
    request_id: str
    door: str

    @classmethod
    def of(cls, event: AuditEvent) -> Self:
        """The view of an event."""
        return cls(
            at=event.at,
            principal=event.principal,
            action=event.action,
            outcome=event.outcome,
            code=event.code,
            adapter=event.adapter,
            job_id=event.job_id,
            request_id=event.request_id,
            door=event.door,
        )


class AuditList(BaseModel):
    """`GET /v1/audit`."""

    object: Literal["list"] = "list"
    data: list[AuditEventView]
    """Newest first."""
    next_before: str | None
    """`before` of the next page; missing on the last."""
