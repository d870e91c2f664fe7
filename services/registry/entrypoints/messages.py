"""The registry's values as messages of the wire."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hilora.access import TrustTier
from hilora.adapter import RocBasis, adapter_id_of
from hilora.character_grams import GRAM_SCHEME, SampleGrams
from hilora.compression import Squeeze
from hilora.errors import InvalidInput
from hilora.finding import Severity
from hilora_rpc.v1 import registry_pb2, routing_pb2
from services.registry.catalog_entry import CatalogEntry, VersionEntry
from services.registry.job import IngestJob, IngestState
from services.registry.validation_report import ValidationReport

_STATES = {
    IngestState.PENDING: registry_pb2.INGEST_STATE_PENDING,
    IngestState.FETCHING: registry_pb2.INGEST_STATE_FETCHING,
    IngestState.VALIDATING: registry_pb2.INGEST_STATE_VALIDATING,
    IngestState.DECOMPOSING: registry_pb2.INGEST_STATE_DECOMPOSING,
    IngestState.PROFILING: registry_pb2.INGEST_STATE_PROFILING,
    IngestState.READY: registry_pb2.INGEST_STATE_READY,
    IngestState.QUARANTINED: registry_pb2.INGEST_STATE_QUARANTINED,
    IngestState.FAILED: registry_pb2.INGEST_STATE_FAILED,
    IngestState.CANCELLED: registry_pb2.INGEST_STATE_CANCELLED,
    IngestState.RETIRED: registry_pb2.INGEST_STATE_RETIRED,
}
_TIERS = {
    TrustTier.UNTRUSTED: registry_pb2.TRUST_TIER_UNTRUSTED,
    TrustTier.COMMUNITY: registry_pb2.TRUST_TIER_COMMUNITY,
    TrustTier.TRUSTED: registry_pb2.TRUST_TIER_TRUSTED,
}
_SEVERITIES = {
    Severity.INFO: registry_pb2.FINDING_SEVERITY_INFO,
    Severity.WARNING: registry_pb2.FINDING_SEVERITY_WARNING,
    Severity.ERROR: registry_pb2.FINDING_SEVERITY_ERROR,
}
_BASES = {routing_pb2.ROC_BASIS_SVD: RocBasis.SVD, routing_pb2.ROC_BASIS_TRAINED: RocBasis.TRAINED}


def entry_message(
    entry: CatalogEntry, embeddings_mE: NDArray[np.float32] | None = None, grams: SampleGrams | None = None
) -> registry_pb2.CatalogEntry:
    """An entry, with its sample embeddings and their texts' grams where they are given."""
    return registry_pb2.CatalogEntry(
        adapter_id=entry.adapter_id,
        adapter_name=entry.adapter_name,
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
        sample_embeddings=b"" if embeddings_mE is None else embeddings_mE.astype("<f4").tobytes(),
        embedding_dim=entry.embedding_dim,
        component_sha256=entry.component_sha256,
        version=entry.version,
        profile_id=entry.profile_id,
        trust_tier=_TIERS[entry.access.trust_tier],
        visible_to=entry.access.visible_to,
        tags=entry.tags,
        gram_scheme="" if grams is None else GRAM_SCHEME,
        sample_gram_lengths=[] if grams is None else grams.lengths_M.tolist(),
        sample_grams=b"" if grams is None else grams.ids_N.astype("<u2").tobytes(),
        other_versions=[_version_message(entry.adapter_name, other) for other in entry.other_versions],
    )


def _version_message(adapter_name: str, version: VersionEntry) -> registry_pb2.VersionEntry:
    return registry_pb2.VersionEntry(
        version=version.version,
        adapter_id=adapter_id_of(adapter_name, version.revision),
        revision=version.revision,
        lora_rank=version.lora_rank,
        num_modules=version.num_modules,
        component_bytes=version.component_bytes,
        created_at=version.created_at,
        component_sha256=version.component_sha256,
    )


def job_message(job: IngestJob) -> registry_pb2.IngestJob:
    """A job."""
    error = None
    if job.error is not None:
        error = registry_pb2.IngestError(
            code=job.error.code,
            message=job.error.message,
            remedy=job.error.remedy or "",
            place=job.error.place or "",
        )
    return registry_pb2.IngestJob(
        job_id=job.job_id,
        adapter_name=job.adapter_name,
        state=_STATES[job.state],
        progress=job.progress,
        detail=job.detail,
        adapter_id=job.adapter_id or "",
        error=error,
        created_at=job.created_at,
        updated_at=job.updated_at,
    )


def basis_of(basis: int) -> RocBasis:
    """The basis a client asks for. Raises InvalidInput (`invalid_basis`) if it names none."""
    try:
        return _BASES[routing_pb2.RocBasis.ValueType(basis)]
    except (KeyError, ValueError) as error:
        raise InvalidInput(
            f"{basis} is no basis.",
            code="invalid_basis",
            remedy="Ask for ROC_BASIS_SVD or ROC_BASIS_TRAINED.",
            place="basis",
        ) from error


def report_message(adapter_id: str, report: ValidationReport | None) -> registry_pb2.ValidationReport:
    """What validation found in a version; nothing for versions older than such reports."""
    return registry_pb2.ValidationReport(
        adapter_id=adapter_id,
        findings=[
            registry_pb2.ValidationFinding(
                code=finding.code,
                severity=_SEVERITIES[finding.severity],
                place=finding.place,
                message=finding.message,
                remedy=finding.remedy,
            )
            for finding in (report.findings if report else ())
        ],
    )


def squeeze_of(message: registry_pb2.Squeeze) -> Squeeze | None:
    """The compression that a request asks for; none if it names neither rank nor energy.

    Raises:
        InvalidInput: `invalid_squeeze`.
    """
    by = message.WhichOneof("by")
    if by is None:
        return None
    return Squeeze(rank=message.rank) if by == "rank" else Squeeze(energy=message.energy)
