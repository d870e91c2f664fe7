"""A catalogue entry from the wire: checked, then split into what names an adapter and what places it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hilora.errors import InvalidInput
from hilora.sequence_routing import AdapterProfile
from hilora_rpc.v1 import registry_pb2
from services.router.catalog import CatalogAdapter

_FLOAT32_LE = np.dtype("<f4")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicatedEntry:
    """One adapter with what routing needs of it."""

    adapter: CatalogAdapter
    profile: AdapterProfile | None
    """None for an adapter without samples: it can be named, never chosen."""


def read_entry(entry: registry_pb2.CatalogEntry, *, encoder_id: str, embedding_dim: int) -> ReplicatedEntry:
    """The entry as the replica keeps it.

    Args:
        entry: what the registry sent.
        encoder_id: this router's encoder; likelihoods under another one would compare nothing.
        embedding_dim: E of that encoder.

    Raises:
        InvalidInput: `encoder_mismatch`, or `invalid_catalog_entry` for an adapter without ROCs or samples that
            are no `[m, E]` finite floats.
    """
    if entry.num_samples and entry.encoder_id != encoder_id:
        raise InvalidInput(
            f"The samples of {entry.adapter_name!r} were embedded by {entry.encoder_id!r}, "
            f"this router uses {encoder_id!r}.",
            code="encoder_mismatch",
            remedy="Give router and registry the same encoder and instruction, then ingest the adapter again.",
            place=entry.adapter_name,
        )
    if entry.lora_rank < 1:
        raise _invalid(entry, "has no rank-one components")
    adapter = CatalogAdapter(
        adapter_id=entry.adapter_id,
        adapter_name=entry.adapter_name,
        revision=entry.revision,
        lora_rank=entry.lora_rank,
        created_at=entry.created_at,
    )
    if not entry.num_samples:
        return ReplicatedEntry(adapter=adapter, profile=None)
    profile = AdapterProfile(
        # The same strings, not further copies of the message's.
        adapter_id=adapter.adapter_id,
        adapter_name=adapter.adapter_name,
        lora_rank=entry.lora_rank,
        samples_ME=_read_samples(entry, embedding_dim),
    )
    return ReplicatedEntry(adapter=adapter, profile=profile)


def _read_samples(entry: registry_pb2.CatalogEntry, embedding_dim: int) -> NDArray[np.float32]:
    expected_bytes = entry.num_samples * embedding_dim * _FLOAT32_LE.itemsize
    if entry.embedding_dim != embedding_dim or len(entry.sample_embeddings) != expected_bytes:
        raise _invalid(
            entry,
            f"has {len(entry.sample_embeddings)} bytes of embeddings where {entry.num_samples} samples of "
            f"{embedding_dim} floats take {expected_bytes}",
        )
    samples_ME = np.frombuffer(entry.sample_embeddings, dtype=_FLOAT32_LE).reshape(entry.num_samples, embedding_dim)
    if not np.isfinite(samples_ME).all():
        raise _invalid(entry, "has embeddings that are not finite")
    return samples_ME.astype(np.float32)


def _invalid(entry: registry_pb2.CatalogEntry, what: str) -> InvalidInput:
    return InvalidInput(
        f"The catalogue entry {entry.adapter_name!r} {what}.",
        code="invalid_catalog_entry",
        remedy="Ingest the adapter again; run router and registry at the same version.",
        place=entry.adapter_name,
    )
