"""Values of the registry, each different by its seed."""

from __future__ import annotations

import numpy as np

from hilora.adapter import RocBasis
from hilora.decomposition import decompose
from services.registry.artifact import ArtifactDraft, Provenance, SampleProfile
from services.registry.catalog_entry import CatalogEntry
from services.registry.job import IngestJob, IngestRequest, SourceKind, new_job_id, pending_job
from tests.builders.adapters import random_adapter


def a_profile(*, seed: int = 0, encoder_id: str = "hash:1") -> SampleProfile:
    return SampleProfile(
        texts=("one", "zwei", "三"),
        embeddings_mE=np.random.default_rng(seed).normal(size=(3, 8)).astype(np.float32),
        encoder_id=encoder_id,
        source="upload",
    )


def a_draft(*, seed: int = 0) -> ArtifactDraft:
    adapter = random_adapter(seed=seed)
    return ArtifactDraft(
        decomposed={basis: decompose(adapter, basis=basis) for basis in RocBasis},
        provenance=Provenance(
            source_kind="upload", source="a.zip", source_sha256=f"{seed:064x}", declared_base_model=None
        ),
        base_model="tiny",
    )


def an_entry(adapter_name: str, *, generation: int, seed: int = 0) -> CatalogEntry:
    return CatalogEntry(
        adapter_name=adapter_name,
        revision=f"{seed:064x}",
        lora_rank=4,
        num_modules=3,
        component_bytes=1000,
        catalog_generation=generation,
        created_at=1.5,
        base_model="tiny",
        encoder_id="hash:1",
        samples_source="upload",
        num_samples=3,
        embedding_dim=8,
        component_sha256={"svd": "a" * 64, "trained": "b" * 64},
    )


def a_request(*, adapter_name: str = "sorter", created_at: float = 1.0) -> IngestRequest:
    return IngestRequest(
        job_id=new_job_id(),
        adapter_name=adapter_name,
        source_kind=SourceKind.UPLOAD,
        source="a.zip",
        is_replacement=False,
        has_own_samples=True,
        created_at=created_at,
    )


def a_job(*, created_at: float = 1.0) -> IngestJob:
    return pending_job(a_request(created_at=created_at), due_at=created_at + 10)
