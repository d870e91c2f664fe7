"""What the registry's work needs from the world.

Asynchronous ports reach another process and may raise `RegistryUnavailable`; blocking ports touch the disk or compute,
and are called in a thread wherever an event loop must not wait.
"""

from __future__ import annotations

from services.registry.ports.adapter_input import (
    AdapterSource,
    ArchiveUnpacker,
    BaseModel,
    FolderAssembler,
    ProfileTexts,
    ProgressListener,
    TensorFileReader,
    TextEncoder,
)
from services.registry.ports.catalog_index import (
    CatalogIndex,
    CatalogTransaction,
)
from services.registry.ports.ingest_work import (
    AuditLog,
    IdempotencyStore,
    IngestQueue,
    JobStore,
    Lease,
)
from services.registry.ports.store import (
    ArtifactStore,
    ComponentReader,
    PoolSource,
    ProfileStore,
    RegistrationStore,
    StagingArea,
    StoreCleaner,
)

__all__ = [
    "AdapterSource",
    "ArchiveUnpacker",
    "ArtifactStore",
    "AuditLog",
    "BaseModel",
    "CatalogIndex",
    "CatalogTransaction",
    "ComponentReader",
    "FolderAssembler",
    "IdempotencyStore",
    "IngestQueue",
    "JobStore",
    "Lease",
    "PoolSource",
    "ProfileStore",
    "ProfileTexts",
    "ProgressListener",
    "RegistrationStore",
    "StagingArea",
    "StoreCleaner",
    "TensorFileReader",
    "TextEncoder",
]
