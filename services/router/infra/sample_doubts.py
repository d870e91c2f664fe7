"""Which adapters of the catalogue are named by anybody and chosen by no text, for what they say of themselves."""

from __future__ import annotations

from collections.abc import Sequence

from hilora.access import TrustTier
from hilora.sample_review import DescribedAdapter, SampleReview
from services.router.infra.catalog_entry import ReplicatedEntry

REVIEWED_UP_TO = 2_000
"""Adapters up to which descriptions are compared at every fit: beyond, it would take longer than an extension."""


def doubtful(entries: Sequence[ReplicatedEntry], review: SampleReview) -> dict[str, str]:
    """Reasons by name. Somebody answers for a trusted adapter: it is never doubted.

    Args:
        entries: the catalogue.
        review: remembers the samples of the last time.
    """
    if len(entries) > REVIEWED_UP_TO:
        return {}
    placed = [entry for entry in entries if entry.profile is not None]
    trusted = {one.adapter.adapter_name for one in placed if one.adapter.access.trust_tier is TrustTier.TRUSTED}
    described = [
        DescribedAdapter(
            adapter_name=entry.adapter.adapter_name,
            arrived_at=entry.adapter.created_at,
            samples_ME=entry.profile.samples_ME,
        )
        for entry in placed
        if entry.profile is not None
    ]
    return {
        name: f"{doubt.message} It can be named, but is not chosen; set its trust tier to 'trusted' to have it chosen."
        for name, doubt in review.doubts_about(described).items()
        if name not in trusted
    }
