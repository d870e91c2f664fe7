"""Which version a name means, and the catalogue that follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from hilora.adapter import adapter_id_of
from services.registry.artifact import ArtifactManifest


class RegistrationState(StrEnum):
    """Whether a name is in the catalogue."""

    READY = "READY"
    RETIRED = "RETIRED"
    """A tombstone: it keeps the generation at which the name left, so that numbers never go back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Registration:
    """The pointer from a name to an immutable version; only this makes an adapter exist."""

    adapter_name: str
    revision: str
    state: RegistrationState
    catalog_generation: int
    """The generation at which this state was, or was about to be, published."""
    created_at: float
    """Unix seconds at which this version took the name."""
    job_id: str
    """The ingest that made it."""

    @property
    def adapter_id(self) -> str:
        """Identity of the version under this name."""
        return adapter_id_of(self.adapter_name, self.revision)


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogEntry:
    """One adapter that requests may use, without its sample embeddings."""

    adapter_name: str
    revision: str
    lora_rank: int
    num_modules: int
    component_bytes: int
    catalog_generation: int
    created_at: float
    base_model: str
    encoder_id: str
    samples_source: str
    num_samples: int
    embedding_dim: int
    component_sha256: Mapping[str, str]
    """sha256 of the components file by basis."""

    @property
    def adapter_id(self) -> str:
        """Identity of the version."""
        return adapter_id_of(self.adapter_name, self.revision)


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogSnapshot:
    """The whole catalogue at one generation."""

    catalog_generation: int
    entries: Mapping[str, CatalogEntry] = field(default_factory=dict[str, CatalogEntry])
    """By adapter name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogChange:
    """One step of the catalogue. `previous_generation` lets a follower see that it missed nothing."""

    catalog_generation: int
    previous_generation: int
    adapter_name: str
    entry: CatalogEntry | None
    """The new or changed entry; `None` if the name left the catalogue."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogHeartbeat:
    """Nothing changed for a while."""

    catalog_generation: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogResync:
    """Changes are missing between the follower and the catalogue: it must take a new snapshot."""

    catalog_generation: int


CatalogNews = CatalogChange | CatalogHeartbeat | CatalogResync


def entry_of(registration: Registration, manifest: ArtifactManifest) -> CatalogEntry:
    """The catalogue entry of a registered version."""
    return CatalogEntry(
        adapter_name=registration.adapter_name,
        revision=registration.revision,
        lora_rank=manifest.lora_rank,
        num_modules=manifest.num_modules,
        component_bytes=manifest.component_bytes,
        catalog_generation=registration.catalog_generation,
        created_at=registration.created_at,
        base_model=manifest.base_model,
        encoder_id=manifest.encoder_id,
        samples_source=manifest.samples_source,
        num_samples=manifest.num_samples,
        embedding_dim=manifest.embedding_dim,
        component_sha256=manifest.component_sha256,
    )
