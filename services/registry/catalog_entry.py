"""The catalogue that routers and workers follow, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hilora.access import AdapterAccess
from hilora.adapter import adapter_id_of


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionEntry:
    """A version that requests may name although the bare name means another one."""

    version: int
    revision: str
    lora_rank: int
    num_modules: int
    component_bytes: int
    created_at: float
    component_sha256: Mapping[str, str]
    """sha256 of the components file by basis."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogEntry:
    """One adapter that requests may use, without its sample embeddings."""

    adapter_name: str
    revision: str
    lora_rank: int
    num_modules: int
    component_bytes: int
    catalog_generation: int
    """The generation of the name's last published change."""
    created_at: float
    base_model: str
    encoder_id: str
    """Empty without a profile."""
    samples_source: str
    num_samples: int
    """0 without a profile: the adapter can be named, never chosen."""
    embedding_dim: int
    component_sha256: Mapping[str, str]
    """sha256 of the components file by basis."""
    version: int = 1
    profile_id: str = ""
    access: AdapterAccess = field(default_factory=AdapterAccess)
    tags: tuple[str, ...] = ()
    other_versions: tuple[VersionEntry, ...] = ()

    @property
    def adapter_id(self) -> str:
        """Identity of the current version."""
        return adapter_id_of(self.adapter_name, self.revision)


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogSnapshot:
    """The whole catalogue at one generation."""

    catalog_generation: int
    entries: Mapping[str, CatalogEntry] = field(default_factory=dict[str, CatalogEntry])
    """By adapter name."""
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    """`name` or `name@version` by alias."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogChange:
    """One step of the catalogue. `previous_generation` lets a follower see that it missed nothing."""

    catalog_generation: int
    previous_generation: int
    adapter_name: str = ""
    """Empty if the aliases changed."""
    entry: CatalogEntry | None = None
    """The new or changed entry; `None` if the name left the catalogue."""
    aliases: Mapping[str, str] | None = None
    """All aliases after the step, if it changed them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogHeartbeat:
    """Nothing changed for a while."""

    catalog_generation: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogResync:
    """Changes are missing between the follower and the catalogue: it must take a new snapshot."""

    catalog_generation: int


CatalogNews = CatalogChange | CatalogHeartbeat | CatalogResync


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogRecord:
    """What belongs to the catalogue as a whole; durable, beside the registrations."""

    catalog_generation: int = 0
    """The generation of the last change of this record."""
    encoder_id: str = ""
    """The encoder whose profiles are published; empty before the first profile."""
    encoder_since: float = 0.0
    """Unix seconds from which on they are."""
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    """`name` or `name@version` by alias."""
