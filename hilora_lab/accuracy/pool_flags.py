"""What the product's checks say about the adapters of a pool, and whom its default policy therefore does not choose.

The checks are the registry's and the router's own: norms far from the pool's at ingest, descriptions that nobody should
be routed by, and pairs whose samples could come from one task though their updates have little in common.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hilora.adapter import LoRAAdapter, RocBasis
from hilora.adapter_review import find_norm_outliers
from hilora.decomposition import decompose
from hilora.empirical_bayes import fit_pooled_eb
from hilora.fingerprint import norms_by_kind, update_norms
from hilora.pool_audit import SAME_TASK_RATIO, audit_pool
from hilora.sample_review import DescribedAdapter, DoubtKind, doubts_about
from hilora.sequence_routing import AdapterProfile
from hilora.update_overlap import update_overlap

NORM_OUTLIER = "norm_outlier"
SAME_TASK = "same_task_other_update"
_SAME_UPDATE_COSINE = 0.5
"""Below it, two adapters of one task do different things."""
UNCHOSEN = frozenset({NORM_OUTLIER, DoubtKind.COPIED_SAMPLES.value, DoubtKind.SAMPLES_OF_MANY.value})
"""Flags under which the default policy does not choose an adapter: the registry holds it back, or the router does."""


def flags_of(profiles: Mapping[str, AdapterProfile], adapters: Mapping[str, LoRAAdapter]) -> dict[str, tuple[str, ...]]:
    """The flags of every adapter, by name; adapters arrived in the order of the mapping."""
    names = list(profiles)
    found: dict[str, list[str]] = {name: [] for name in names}
    norms = {name: norms_by_kind(update_norms(adapters[name])) for name in names}
    for name in names:
        if find_norm_outliers(norms[name], [norms[other] for other in names if other != name]):
            found[name].append(NORM_OUTLIER)
    described = [
        DescribedAdapter(adapter_name=name, arrived_at=float(idx), samples_ME=profiles[name].samples_ME)
        for idx, name in enumerate(names)
    ]
    for name, doubt in doubts_about(described).items():
        found[name].append(doubt.kind.value)
    for name in _same_task(names, profiles, adapters):
        found[name].append(SAME_TASK)
    return {name: tuple(flags) for name, flags in found.items()}


def chosen_among(
    profiles: Mapping[str, AdapterProfile], flags: Mapping[str, tuple[str, ...]]
) -> dict[str, AdapterProfile]:
    """The pool that texts are routed over."""
    return {name: profile for name, profile in profiles.items() if UNCHOSEN.isdisjoint(flags[name])}


def _same_task(
    names: list[str], profiles: Mapping[str, AdapterProfile], adapters: Mapping[str, LoRAAdapter]
) -> set[str]:
    """Adapters whose samples could be another's, and whose update is not."""
    if len(names) < 2:
        return set()
    blocks = [profiles[name].samples_ME for name in names]
    audit = audit_pool(fit_pooled_eb(blocks), np.array([len(block) for block in blocks]), num_rivals=1)
    found: set[str] = set()
    for row, rivals, ratios in zip(audit.rows_B, audit.rivals_BR, audit.same_task_BR, strict=True):
        if ratios[0] <= SAME_TASK_RATIO:
            pair = [decompose(adapters[names[place]], basis=RocBasis.SVD) for place in (int(row), int(rivals[0]))]
            if update_overlap(*pair).cosine < _SAME_UPDATE_COSINE:
                found.add(names[int(row)])
    return found
