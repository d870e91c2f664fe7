"""What the REST door reads and writes."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from hilora.update_statistics import UpdateStatistics
from services.registry.artifact import ArtifactManifest
from services.registry.entrypoints.audit_schemas import StatisticsView
from services.registry.job import IngestJob, IngestState, SourceKind
from services.registry.registration import CatalogEntry


class SourceReference(BaseModel):
    """Where the registry finds the files itself: exactly one of the two."""

    model_config = ConfigDict(extra="forbid")

    hub: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    """`owner/name` or `owner/name@revision`."""
    path: Annotated[str, StringConstraints(min_length=1, max_length=4096)] | None = None
    """A folder the operator allows."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.hub is None) == (self.path is None):
            raise ValueError("give exactly one of hub and path")
        return self

    @property
    def kind(self) -> SourceKind:
        """Which of the two it is."""
        return SourceKind.HUB if self.hub is not None else SourceKind.PATH

    @property
    def reference(self) -> str:
        """The one that is given."""
        return self.hub or self.path or ""


class AddAdapterBody(BaseModel):
    """`POST /v1/adapters` with a JSON body."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = None
    source: SourceReference
    samples: Annotated[list[str], Field(max_length=1000)] = []
    """Texts of the adapter's task; empty if the source has a `samples.jsonl`."""
    replace: bool = False
    """Whether another version of the name may be replaced."""


class ErrorView(BaseModel):
    """Why an ingest failed."""

    code: str
    message: str
    remedy: str | None
    place: str | None


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
    created_at: float
    updated_at: float

    @classmethod
    def of(cls, job: IngestJob) -> Self:
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
            created_at=job.created_at,
            updated_at=job.updated_at,
        )


class JobList(BaseModel):
    """`GET /v1/jobs`."""

    object: Literal["list"] = "list"
    data: list[JobView]


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
        )


class ProvenanceView(BaseModel):
    """Where the files came from."""

    source_kind: str
    source: str
    source_sha256: str
    declared_base_model: str | None


class AdapterDetails(AdapterView):
    """`GET /v1/adapters/{name}`."""

    provenance: ProvenanceView
    files: dict[str, str]
    """sha256 by file name."""
    update: StatisticsView
    """How large the update is, and over how many directions it spreads."""

    @classmethod
    def with_manifest(cls, entry: CatalogEntry, manifest: ArtifactManifest, statistics: UpdateStatistics) -> Self:
        """The view of an entry and what is stored for it."""
        origin = manifest.provenance
        return cls(
            **AdapterView.of(entry).model_dump(),
            provenance=ProvenanceView(
                source_kind=origin.source_kind,
                source=origin.source,
                source_sha256=origin.source_sha256,
                declared_base_model=origin.declared_base_model,
            ),
            files=dict(manifest.files),
            update=StatisticsView.of(statistics),
        )


class AdapterList(BaseModel):
    """`GET /v1/adapters`."""

    object: Literal["list"] = "list"
    catalog_generation: int
    data: list[AdapterView]


class Retired(BaseModel):
    """`DELETE /v1/adapters/{name}`."""

    object: Literal["adapter.retired"] = "adapter.retired"
    name: str
    state: Literal["RETIRED"] = "RETIRED"
    catalog_generation: int
    """The generation from which on the adapter is gone."""
