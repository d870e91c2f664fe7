"""A pool of adapters with the model fitted to it, and what can be added to it before the next fit.

Fitting thousands of adapters takes seconds. An adapter that arrives meanwhile is placed by the fit that is there: its
own mean and sample count under the covariances of the others.

Shapes: L adapters, C scored ones, M samples, E embedding dimension. The pool is kept in the order of its
`adapter_id`s, newcomers after it in theirs, so that a place means the same whatever the order of registration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from hilora.calibration import softmax
from hilora.character_grams import GramIds, SampleGrams
from hilora.covariance import FloatArray
from hilora.empirical_bayes import PooledEmpiricalBayes
from hilora.family_scores import FamilyScores
from hilora.gaussian_index import NOBODY, ExtendedGaussianIndex, GaussianIndex, IndexBuilder, log_sum_exp
from hilora.pool_statistics import PoolStatistics
from hilora.pooled_gaussian import WhitenedGaussians
from hilora.routing_explanation import ScoredPool
from hilora.routing_settings import RoutingSettings
from hilora.sample_vectors import SampleVectors
from hilora.skill_pairs import PairMemory, SkillPair, SkillPairs
from hilora.stacked_scores import SHORTLIST, LexicalStack, fit_stacked

NUM_HALVES = 12
"""Adapters among which two that explain a text together are looked for. Each costs some 0.01 ms."""
_NUM_RIVALS = 32
"""Adapters by which it is seen whether one is a combination of two of them."""


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class AdapterProfile:
    """What the router knows of an adapter: the embeddings of its sample texts."""

    adapter_id: str
    adapter_name: str
    lora_rank: int
    samples_ME: NDArray[np.float32]
    """Unit vectors of the pool's encoder, at least one."""
    grams: SampleGrams | None = None
    """How the same texts are written; None if that is not known."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedPool:
    """At least one adapter, fitted. Immutable and safe to share between threads."""

    profiles: tuple[AdapterProfile, ...]
    """The adapters by place."""
    num_fitted: int
    """The first so many took part in the fit."""
    fitted_places: Mapping[str, tuple[int, ...]]
    """Their places by name; kept by every extension."""
    newcomer_places: Mapping[str, tuple[int, ...]]
    """Places of those that came after the fit, by name."""
    superseded: NDArray[np.intp]
    """Places of fitted adapters whose name means a newcomer now."""
    model: PooledEmpiricalBayes
    fitted_index: GaussianIndex
    """Searches those that took part in the fit."""
    index: GaussianIndex
    """Searches all."""
    families: FamilyScores
    """Of those that took part in the fit."""
    fitted_stack: LexicalStack | None
    """What the wording of those says of a text; None where it has no weight."""
    stack: LexicalStack | None
    """The same of all."""
    newcomers: WhitenedGaussians | None = None
    """Predictive Gaussians of those that came after the fit, by place."""
    pair_memory: PairMemory = field(default_factory=PairMemory)
    """What was found out for pairs of skills; kept by every extension."""

    @classmethod
    def fit(cls, profiles: Sequence[AdapterProfile], *, build_index: IndexBuilder) -> FittedPool:
        """Fit a pool.

        Args:
            profiles: at least one, in any order; the order never matters.
            build_index: makes what is searched.

        Raises:
            ValueError: an adapter twice, one without samples or ranks, unequal dimensions, values that are not finite.
        """
        ordered = _ordered(profiles)
        _check(ordered)
        samples = [profile.samples_ME for profile in ordered]
        model, stack = fit_stacked(samples, [profile.grams for profile in ordered])
        index = build_index(model.gaussians)
        return cls(
            profiles=ordered,
            num_fitted=len(ordered),
            fitted_places=_places(ordered, first=0),
            newcomer_places={},
            superseded=NOBODY,
            model=model,
            fitted_index=index,
            index=index,
            families=FamilyScores(samples),
            stack=stack,
            fitted_stack=stack,
        )

    def extended(self, newcomers: Sequence[AdapterProfile]) -> FittedPool:
        """This fit with all adapters that came after it; those of an earlier extension are forgotten.

        Raises:
            ValueError: like `fit`, of the newcomers.
        """
        fitted, added = self.profiles[: self.num_fitted], _ordered(newcomers)
        _check(added)
        if not added:
            return replace(
                self,
                profiles=fitted,
                newcomer_places={},
                superseded=NOBODY,
                index=self.fitted_index,
                stack=self.fitted_stack,
                newcomers=None,
            )
        statistics = PoolStatistics.of([profile.samples_ME for profile in added])
        gaussians = self.model.predict(statistics.means_LE, statistics.num_samples_L)
        newcomer_places = _places(added, first=self.num_fitted)
        superseded = [idx for name in newcomer_places for idx in self.fitted_places.get(name, ())]
        return replace(
            self,
            profiles=(*fitted, *added),
            newcomer_places=newcomer_places,
            superseded=np.array(sorted(superseded), dtype=np.intp),
            index=ExtendedGaussianIndex(self.fitted_index, gaussians),
            stack=None if self.fitted_stack is None else self.fitted_stack.extended([item.grams for item in added]),
            newcomers=gaussians,
        )

    @property
    def lexical_bytes(self) -> int:
        """Memory that the wording of all samples takes."""
        grams = sum(profile.grams.num_bytes for profile in self.profiles if profile.grams is not None)
        return grams + (0 if self.stack is None else self.stack.lexical.num_bytes)

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of all adapters, superseded ones included."""
        return frozenset(self.fitted_places) | frozenset(self.newcomer_places)

    def excluded_places(self, names: frozenset[str]) -> NDArray[np.intp]:
        """Places of the adapters of these names and of the superseded ones, rising; remembered while `names` lives."""
        found = self._excluded_places.get(names)
        if found is None:
            places = set(self.superseded.tolist())
            for name in names:
                places.update(self.fitted_places.get(name, ()))
                places.update(self.newcomer_places.get(name, ()))
            found = np.array(sorted(places), dtype=np.intp)
            found.flags.writeable = False
            self._excluded_places[names] = found
        return found

    @cached_property
    def _excluded_places(self) -> WeakKeyDictionary[frozenset[str], NDArray[np.intp]]:
        return WeakKeyDictionary()

    def checked(self, z_E: NDArray[np.floating]) -> FloatArray:
        """The embedding in float64.

        Raises:
            ValueError: one of another dimension, or with values that are not finite.
        """
        z_E = np.asarray(z_E, dtype=np.float64)
        if z_E.shape != self.model.space.center_E.shape:
            raise ValueError(f"the embedding has shape {z_E.shape}, the pool's are {self.model.space.center_E.shape}")
        if not np.isfinite(z_E).all():
            raise ValueError("the embedding holds values that are not finite")
        return z_E

    def place_of(self, adapter_id: str, adapter_name: str) -> int | None:
        """Where an adapter version stands; None if it may not be chosen here, or is not known."""
        places = self.newcomer_places.get(adapter_name) or self.fitted_places.get(adapter_name, ())
        return next((place for place in places if self.profiles[place].adapter_id == adapter_id), None)

    def score_nearest(
        self,
        z_E: FloatArray,
        *,
        num_results: int,
        excluded: NDArray[np.intp],
        also: NDArray[np.intp] = NOBODY,
        grams: GramIds | None = None,
    ) -> ScoredPool:
        """The best adapters for a text, by falling posterior: all that the calibrated mode looks at.

        Args:
            z_E: the text.
            num_results: how many; all that are allowed, where these are fewer.
            excluded: places of adapters that do not count.
            also: places that are scored whether they are among the best or not, none of them excluded.
            grams: how the text is written (`gram_ids`), if that is to count, too.
        """
        stack = None if grams is None else self.stack
        temperature = self.model.temperature if stack is None else stack.weights.temperature
        num_searched = num_results if stack is None else max(num_results, SHORTLIST)
        y_K, rest = self.model.space.locate(z_E)
        found = self.index.search(
            y_K, float(rest), num_results=num_searched, temperature=temperature, excluded=excluded
        )
        idx_C, log_density_C = found.idx_C, found.log_density_C
        # Sets are slow, and nearly always nobody else is asked for.
        others = np.setdiff1d(also, idx_C) if len(also) else NOBODY
        if len(others):
            idx_C = np.concatenate([idx_C, others])
            log_density_C = np.concatenate([log_density_C, self._log_density_of(others, y_K, float(rest))])
        log_posterior_C = log_density_C / temperature - found.log_partition
        new_task = float(self.model.new_task.log_density(y_K, rest)[0])
        if stack is not None and grams is not None and len(idx_C):
            # The wording moves mass among those that it is looked at for; together they keep what they have.
            is_unknown = bool(log_density_C.max() <= new_task)
            combined_C = stack.combined(log_density_C, grams, idx_C, is_unknown=is_unknown)
            log_posterior_C = combined_C - log_sum_exp(combined_C) + log_sum_exp(log_posterior_C)
        order = np.lexsort((idx_C, -log_posterior_C))
        if stack is not None:
            wanted, others = order[:num_results], order[num_results:]
            order = np.concatenate([wanted, others[np.isin(idx_C[others], also)]]) if len(also) else wanted
        idx_C, log_density_C, log_posterior_C = idx_C[order], log_density_C[order], log_posterior_C[order]
        return ScoredPool(
            idx_C=idx_C,
            scores_C=log_density_C + self.model.space.within.log_det_whitening,
            ratios_C=log_density_C - new_task,
            posterior_C=np.exp(log_posterior_C),
            num_allowed=len(self.profiles) - len(excluded),
        )

    def skill_pair(self, text: str, grams: GramIds, places_C: NDArray[np.intp]) -> SkillPair | None:
        """Two adapters that together explain a text that none explains; None if no two do, or wordings have no weight.

        Args:
            text: what is asked.
            grams: how it is written.
            places_C: among whom they are looked for.
        """
        pairs = self._skill_pairs
        return None if pairs is None else pairs.find(text, grams, np.sort(places_C))

    def prepare_like(self, earlier: FittedPool) -> None:
        """Work out what requests asked of an earlier fit before the first one asks it of this one."""
        pairs = self._skill_pairs
        if pairs is None:
            return
        asked = earlier.pair_memory.asked()
        for place, profile in enumerate(self.profiles):
            if profile.grams in asked:
                pairs.is_combination(place)

    @cached_property
    def _skill_pairs(self) -> SkillPairs | None:
        if self.stack is None:
            return None

        def rivals_of(place: int) -> NDArray[np.intp]:
            # Of the fit alone, so that what is found holds for every extension; a version is no rival of another one.
            profile = self.profiles[place]
            own = [*self.fitted_places.get(profile.adapter_name, ()), *range(self.num_fitted, len(self.profiles))]
            mean_E = profile.samples_ME.mean(axis=0, dtype=np.float64)
            excluded = np.array(own, dtype=np.intp)
            return np.sort(self.score_nearest(mean_E, num_results=_NUM_RIVALS, excluded=excluded).idx_C)

        return SkillPairs(
            lambda place: self.profiles[place].grams,
            self.stack.lexical.weights_G,
            rivals_of=rivals_of,
            memory=self.pair_memory,
        )

    def _log_density_of(self, idx_C: NDArray[np.intp], y_K: FloatArray, rest: float) -> FloatArray:
        """Scores in whitened units at some places, rising."""
        is_fitted_C = idx_C < self.num_fitted
        parts = [self.model.gaussians.log_density_of(idx_C[is_fitted_C], y_K, rest)]
        if self.newcomers is not None:
            parts.append(self.newcomers.log_density_of(idx_C[~is_fitted_C] - self.num_fitted, y_K, rest))
        return np.concatenate(parts)

    def cosines(self, z_E: FloatArray) -> FloatArray:
        """Cosine of a text with the mean of each adapter's samples, `[L]`: what LoraRetriever (2402.09997) goes by."""
        return (self._unit_means @ z_E.astype(np.float32)).astype(np.float64) / float(np.linalg.norm(z_E) or 1.0)

    @cached_property
    def _unit_means(self) -> NDArray[np.float32]:
        means_LE = np.stack([profile.samples_ME.mean(axis=0, dtype=np.float64) for profile in self.profiles])
        norms_L = np.linalg.norm(means_LE, axis=1, keepdims=True)
        return (means_LE / np.where(norms_L > 0.0, norms_L, 1.0)).astype(np.float32)

    @cached_property
    def samples(self) -> SampleVectors:
        """All samples side by side; made at its first use, because most pools are never searched by samples."""
        return SampleVectors.of(
            [profile.samples_ME for profile in self.profiles],
            adapter_ids=[profile.adapter_id for profile in self.profiles],
        )

    def score_all(self, z_E: FloatArray, *, settings: RoutingSettings, excluded: NDArray[np.intp]) -> ScoredPool:
        """Every allowed adapter that took part in the fit, by place, scored as the paper's mode does (E3)."""
        allowed = np.delete(np.arange(self.num_fitted), excluded[excluded < self.num_fitted])
        if not len(allowed):
            nothing = np.zeros(0)
            return ScoredPool(idx_C=allowed, scores_C=nothing, ratios_C=nothing, posterior_C=nothing, num_allowed=0)
        scores_L = self.families.log_likelihoods(
            z_E, family=settings.covariance_family, shrinkage=settings.covariance_shrinkage
        )
        return ScoredPool(
            idx_C=allowed,
            scores_C=scores_L[allowed] / len(z_E),
            ratios_C=self.model.log_likelihood_ratio(z_E)[allowed],
            posterior_C=softmax(self.model.log_likelihood(z_E)[allowed] / self.model.temperature),
            num_allowed=len(allowed),
        )


def _ordered(profiles: Sequence[AdapterProfile]) -> tuple[AdapterProfile, ...]:
    return tuple(sorted(profiles, key=lambda profile: profile.adapter_id))


def _check(profiles: Sequence[AdapterProfile]) -> None:
    if len({profile.adapter_id for profile in profiles}) != len(profiles):
        raise ValueError("an adapter_id stands in the pool twice")
    if any(profile.lora_rank < 1 for profile in profiles):
        raise ValueError("every adapter needs a rank of at least 1")


def _places(profiles: Sequence[AdapterProfile], *, first: int) -> dict[str, tuple[int, ...]]:
    places: dict[str, tuple[int, ...]] = {}
    for idx, profile in enumerate(profiles, start=first):
        places[profile.adapter_name] = (*places.get(profile.adapter_name, ()), idx)
    return places
