"""Which adapters are likely to be taken for one another, and what to do about it.

The arithmetic is the router's: the same pool, fitted in the same way, so that the distances are those that requests
will meet. Fitting thousands of adapters takes seconds; it is done once per generation of the catalogue and kept.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from hilora.empirical_bayes import PooledEmpiricalBayes, fit_pooled_eb
from hilora.errors import InvalidInput, UnknownAdapter
from hilora.pool_audit import SAME_TASK_RATIO, PoolAudit, audit_pool
from hilora.update_overlap import UpdateOverlap, update_overlap
from services.registry.catalog import Catalog
from services.registry.catalog_entry import CatalogEntry
from services.registry.ports import ComponentReader

_NUM_RIVALS = 5
_SAFE = 0.9
"""Adapters that are routed right less often, by the bound, deserve better samples."""
_SAME_UPDATE_COSINE = 0.9
_FEW_SAMPLES = 5
"""Below so many, nothing beats the distance to the mean, and all bounds are guesses."""


class Advice(StrEnum):
    """What to do about an adapter."""

    FINE = "fine"
    ADD_SAMPLES = "add_samples"
    """Its few texts say little."""
    REDESCRIBE = "redescribe"
    """Its texts are those of another task, too: send more telling ones."""
    MERGE = "merge"
    """Another adapter has the same texts and does the same: keep one, or merge them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rival:
    """An adapter that another one may be taken for."""

    adapter_name: str
    adapter_id: str
    distance: float
    """Bhattacharyya's, of the predictive Gaussians."""
    error_bound: float
    """The most that the best choice between the two errs: `1/2 exp(-distance)`."""
    same_task_ratio: float
    """About 1 if the samples of both could come from one task; see `hilora.pool_audit`."""
    overlap: UpdateOverlap | None = None
    """What the two do, compared; None where it was not looked at."""

    @property
    def is_near_duplicate(self) -> bool:
        """Whether the samples give no reason to keep the two apart."""
        return self.same_task_ratio <= SAME_TASK_RATIO


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterAudit:
    """How safely one adapter is found."""

    adapter_name: str
    adapter_id: str
    num_samples: int
    routed_right_at_least: float
    """Lower bound of the probability that a text of its task is routed to it, if texts follow the fitted Gaussians.
    Real texts do so only roughly: compare adapters by it, do not promise it."""
    rivals: tuple[Rival, ...]
    """Nearest first."""
    advice: Advice
    explanation: str
    """The advice as a sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfusabilityPage:
    """A part of the pool, the adapters at most risk first."""

    catalog_generation: int
    num_audited: int
    """Adapters of the whole pool that could be compared."""
    num_passed_over: int
    """Adapters without samples, or with samples of another encoder than most."""
    adapters: tuple[AdapterAudit, ...]


@dataclass(frozen=True, kw_only=True)
class _FittedCatalog:
    """One generation of the catalogue, fitted; compared as a whole once somebody asks for that."""

    catalog_generation: int
    entries: tuple[CatalogEntry, ...]
    num_passed_over: int
    num_samples_L: NDArray[np.intp]
    model: PooledEmpiricalBayes | None
    """None without any adapter."""
    whole: PoolAudit | None = None


class ConfusabilityAudit:
    """See the module.

    Args:
        catalog: the adapters and their samples.
        components: what the adapters do.
    """

    def __init__(self, *, catalog: Catalog, components: ComponentReader) -> None:
        self._catalog = catalog
        self._components = components
        self._fitted: _FittedCatalog | None = None
        self._lock = asyncio.Lock()

    async def adapter(self, adapter_name: str) -> AdapterAudit:
        """One adapter with its rivals and how much their updates overlap.

        Raises:
            UnknownAdapter: no adapter of this name is registered.
            InvalidInput: `not_comparable`, for one without samples of the pool's encoder.
        """
        entry = await self._catalog.entry(adapter_name)
        fitted = await self._current(needs_whole=False)
        places = [place for place, other in enumerate(fitted.entries) if other.adapter_name == adapter_name]
        if not places or fitted.model is None:
            raise InvalidInput(
                f"{entry.adapter_name} has no samples of the pool's encoder, so it cannot be compared.",
                code="not_comparable",
                remedy="Add sample texts to it; after a change of the encoder, wait until it is profiled again.",
                place="name",
            )
        audit = await asyncio.to_thread(
            audit_pool,
            fitted.model,
            fitted.num_samples_L,
            num_rivals=_NUM_RIVALS,
            rows=np.array(places, dtype=np.intp),
        )
        found = _result(fitted, audit, row=0)
        rivals = [await self._with_overlap(fitted, found, rival) for rival in found.rivals]
        return _advised(replace(found, rivals=tuple(rivals)))

    async def page(self, *, offset: int, limit: int) -> ConfusabilityPage:
        """A part of the whole pool, the adapters at most risk first. Updates of near-duplicates are compared."""
        fitted = await self._current(needs_whole=True)
        adapters: list[AdapterAudit] = []
        if fitted.whole is not None:
            nearest = fitted.whole.distances_BR[:, 0] if fitted.whole.distances_BR.shape[1] else np.zeros(1)
            # Ties of the bound, as at 0, are broken by the nearest rival; the rest stays in the order of the names.
            for row in np.lexsort((nearest, fitted.whole.routed_right_B))[offset : offset + limit]:
                found = _result(fitted, fitted.whole, row=int(row))
                if found.rivals and found.rivals[0].is_near_duplicate:
                    first = await self._with_overlap(fitted, found, found.rivals[0])
                    found = replace(found, rivals=(first, *found.rivals[1:]))
                adapters.append(_advised(found))
        return ConfusabilityPage(
            catalog_generation=fitted.catalog_generation,
            num_audited=len(fitted.entries),
            num_passed_over=fitted.num_passed_over,
            adapters=tuple(adapters),
        )

    async def _current(self, *, needs_whole: bool) -> _FittedCatalog:
        """The newest generation, fitted; one caller does the work, the others wait for it."""
        async with self._lock:
            snapshot = await self._catalog.snapshot()
            fitted = self._fitted
            if fitted is None or fitted.catalog_generation != snapshot.catalog_generation:
                fitted = await self._fit(snapshot.catalog_generation, list(snapshot.entries.values()))
            if needs_whole and fitted.whole is None and fitted.model is not None:
                whole = await asyncio.to_thread(audit_pool, fitted.model, fitted.num_samples_L, num_rivals=_NUM_RIVALS)
                fitted = replace(fitted, whole=whole)
            self._fitted = fitted
            return fitted

    async def _fit(self, catalog_generation: int, entries: Sequence[CatalogEntry]) -> _FittedCatalog:
        encoders = Counter((entry.encoder_id, entry.embedding_dim) for entry in entries if entry.num_samples)
        common = encoders.most_common(1)
        compared: list[CatalogEntry] = []
        samples: list[NDArray[np.float32]] = []
        for entry in sorted(entries, key=lambda entry: entry.adapter_name):
            if not entry.num_samples or (entry.encoder_id, entry.embedding_dim) != common[0][0]:
                continue
            try:
                samples.append(await self._catalog.sample_embeddings(entry))
            except UnknownAdapter:
                continue  # one damaged version must not keep the others from being audited
            compared.append(entry)
        return _FittedCatalog(
            catalog_generation=catalog_generation,
            entries=tuple(compared),
            num_passed_over=len(entries) - len(compared),
            num_samples_L=np.array([len(block) for block in samples], dtype=np.intp),
            model=await asyncio.to_thread(fit_pooled_eb, samples) if samples else None,
        )

    async def _with_overlap(self, fitted: _FittedCatalog, audit: AdapterAudit, rival: Rival) -> Rival:
        revision_of = {entry.adapter_id: entry.revision for entry in fitted.entries}
        try:
            overlap = await asyncio.to_thread(
                self._overlap, revision_of[audit.adapter_id], revision_of[rival.adapter_id]
            )
        except UnknownAdapter:
            return rival  # replaced and collected meanwhile
        return replace(rival, overlap=overlap)

    def _overlap(self, revision: str, other_revision: str) -> UpdateOverlap:
        return update_overlap(
            self._components.svd_components(revision), self._components.svd_components(other_revision)
        )


def _result(fitted: _FittedCatalog, audit: PoolAudit, *, row: int) -> AdapterAudit:
    """A row of the audit with names, not yet advised."""
    place = int(audit.rows_B[row])
    entry = fitted.entries[place]
    rivals = [
        Rival(
            adapter_name=fitted.entries[other].adapter_name,
            adapter_id=fitted.entries[other].adapter_id,
            distance=float(distance),
            error_bound=0.5 * float(np.exp(-distance)),
            same_task_ratio=float(ratio),
        )
        for other, distance, ratio in zip(
            audit.rivals_BR[row], audit.distances_BR[row], audit.same_task_BR[row], strict=True
        )
    ]
    return AdapterAudit(
        adapter_name=entry.adapter_name,
        adapter_id=entry.adapter_id,
        num_samples=int(fitted.num_samples_L[place]),
        routed_right_at_least=float(audit.routed_right_B[row]),
        rivals=tuple(rivals),
        advice=Advice.FINE,
        explanation="",
    )


def _advised(audit: AdapterAudit) -> AdapterAudit:
    advice, explanation = _advice(audit)
    return replace(audit, advice=advice, explanation=explanation)


def _advice(audit: AdapterAudit) -> tuple[Advice, str]:
    duplicates = [rival for rival in audit.rivals if rival.is_near_duplicate]
    for rival in duplicates:
        if rival.overlap is not None and rival.overlap.cosine >= _SAME_UPDATE_COSINE:
            return Advice.MERGE, (
                f"Its samples and its update are those of {rival.adapter_name} (cosine {rival.overlap.cosine:.2f}): "
                "keep one of the two, or merge them."
            )
    if duplicates:
        names = ", ".join(rival.adapter_name for rival in duplicates)
        return Advice.REDESCRIBE, (
            f"Its samples could be those of {names}, which does something else: send texts that only it should answer."
        )
    if audit.num_samples < _FEW_SAMPLES:
        return Advice.ADD_SAMPLES, f"It is described by {audit.num_samples} texts: send about 20."
    if audit.routed_right_at_least < _SAFE:
        return Advice.REDESCRIBE, (
            f"A text of its task is sure to be routed right only {audit.routed_right_at_least:.0%} of the time; the "
            f"nearest other one is {audit.rivals[0].adapter_name}: send more, and more telling, texts for both."
        )
    return Advice.FINE, "Its texts set it apart."
