"""A catalogue entry from the wire: checked, then split into what names an adapter and what places it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hilora.access import AdapterAccess, TrustTier
from hilora.character_grams import GRAM_SCHEME, SampleGrams
from hilora.errors import InvalidInput
from hilora.sequence_routing import AdapterProfile
from hilora_rpc.v1 import registry_pb2
from services.router.catalog import CatalogAdapter

TIERS_FROM_WIRE = {
    registry_pb2.TRUST_TIER_UNSPECIFIED: TrustTier.COMMUNITY,
    registry_pb2.TRUST_TIER_UNTRUSTED: TrustTier.UNTRUSTED,
    registry_pb2.TRUST_TIER_COMMUNITY: TrustTier.COMMUNITY,
    registry_pb2.TRUST_TIER_TRUSTED: TrustTier.TRUSTED,
}
"""Trust tiers by their wire value."""

_FLOAT32_LE = np.dtype("<f4")
_UINT16_LE = np.dtype("<u2")
_MAX_REMEMBERED_RULES = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicatedEntry:
    """One adapter with what routing needs of it."""

    adapter: CatalogAdapter
    profile: AdapterProfile | None
    """None for an adapter without samples, or with samples of another encoder: it can be named, never chosen."""
    encoder_id: str
    """What embedded the samples; empty without any."""


def read_entry(entry: registry_pb2.CatalogEntry, *, encoder_id: str, embedding_dim: int) -> ReplicatedEntry:
    """The entry as the replica keeps it.

    Args:
        entry: what the registry sent.
        encoder_id: this router's encoder; likelihoods under another one would compare nothing.
        embedding_dim: E of that encoder.

    Raises:
        InvalidInput: `invalid_catalog_entry`, for an adapter without ROCs, with samples that are no `[m, E]` finite
            floats, or with grams that are not theirs.
    """
    if entry.lora_rank < 1:
        raise _invalid(entry, "has no rank-one components")
    adapter = CatalogAdapter(
        adapter_id=entry.adapter_id,
        adapter_name=entry.adapter_name,
        revision=entry.revision,
        lora_rank=entry.lora_rank,
        created_at=entry.created_at,
        version=entry.version or 1,
        access=_access_of(entry.trust_tier, tuple(entry.visible_to)),
        tags=_tags_of(tuple(entry.tags)),
        other_versions=tuple(_read_version(entry.adapter_name, other) for other in entry.other_versions),
    )
    if not entry.num_samples or entry.encoder_id != encoder_id:
        return ReplicatedEntry(adapter=adapter, profile=None, encoder_id=entry.encoder_id)
    profile = AdapterProfile(
        # The same strings, not further copies of the message's.
        adapter_id=adapter.adapter_id,
        adapter_name=adapter.adapter_name,
        lora_rank=entry.lora_rank,
        samples_ME=_read_samples(entry, embedding_dim),
        grams=_read_grams(entry),
    )
    return ReplicatedEntry(adapter=adapter, profile=profile, encoder_id=entry.encoder_id)


@lru_cache(maxsize=_MAX_REMEMBERED_RULES)
def _access_of(tier: registry_pb2.TrustTier.ValueType, visible_to: tuple[str, ...]) -> AdapterAccess:
    """One object for all adapters under the same rule: a large catalogue has few of them."""
    return AdapterAccess(trust_tier=TIERS_FROM_WIRE.get(tier, TrustTier.UNTRUSTED), visible_to=visible_to)


@lru_cache(maxsize=_MAX_REMEMBERED_RULES)
def _tags_of(tags: tuple[str, ...]) -> tuple[str, ...]:
    """One object for all adapters of the same tags."""
    return tags


def _read_version(adapter_name: str, other: registry_pb2.VersionEntry) -> CatalogAdapter:
    return CatalogAdapter(
        adapter_id=other.adapter_id,
        adapter_name=adapter_name,
        revision=other.revision,
        lora_rank=other.lora_rank,
        created_at=other.created_at,
        version=other.version,
    )


def _read_samples(entry: registry_pb2.CatalogEntry, embedding_dim: int) -> NDArray[np.float32]:
    # Each reading of a message's bytes is a copy. One is taken and kept as the array's memory: further ones would leave
    # their holes between those that stay.
    data = entry.sample_embeddings
    expected_bytes = entry.num_samples * embedding_dim * _FLOAT32_LE.itemsize
    if entry.embedding_dim != embedding_dim or len(data) != expected_bytes:
        raise _invalid(
            entry,
            f"has {len(data)} bytes of embeddings where {entry.num_samples} samples of "
            f"{embedding_dim} floats take {expected_bytes}",
        )
    samples_ME = np.frombuffer(data, dtype=_FLOAT32_LE).reshape(entry.num_samples, embedding_dim)
    if not np.isfinite(samples_ME).all():
        raise _invalid(entry, "has embeddings that are not finite")
    return samples_ME.astype(np.float32, copy=False)


def _read_grams(entry: registry_pb2.CatalogEntry) -> SampleGrams | None:
    """None where there are none, or where they mean something else than here."""
    if entry.gram_scheme != GRAM_SCHEME:
        return None
    lengths_M = np.array(entry.sample_gram_lengths, dtype=np.uint32)
    data = entry.sample_grams
    if len(lengths_M) != entry.num_samples or len(data) != int(lengths_M.sum()) * _UINT16_LE.itemsize:
        raise _invalid(entry, f"has {len(data)} bytes of grams that are not those of its samples")
    ids_N = np.frombuffer(data, dtype=_UINT16_LE).astype(np.uint16, copy=False)
    return SampleGrams(ids_N=ids_N, lengths_M=lengths_M)


def _invalid(entry: registry_pb2.CatalogEntry, what: str) -> InvalidInput:
    return InvalidInput(
        f"The catalogue entry {entry.adapter_name!r} {what}.",
        code="invalid_catalog_entry",
        remedy="Ingest the adapter again; run router and registry at the same version.",
        place=entry.adapter_name,
    )
