"""How much the default's accuracy depends on what somebody has to choose: samples, budgets, encoder, size of the pool.

Every dimension departs from the default in one respect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from hilora.adapter import RocBasis
from hilora.errors import Unavailable
from hilora.routing_plan import CandidateScore, RoutingDecision
from hilora.sequence_routing import AdapterProfile
from hilora_lab.accuracy.accuracy_bench import AccuracyBench, profile_of
from hilora_lab.accuracy.asked import AccuracySetting, ask
from hilora_lab.accuracy.crowd import crowded
from hilora_lab.accuracy.encoders import ENCODERS
from hilora_lab.accuracy.outcomes import Outcomes, interval, resampled
from hilora_lab.accuracy.planner import DEFAULT_STRATEGY, Planner
from hilora_lab.evaluation.profile_sources import ProfileBench

SAMPLE_COUNTS = (1, 3, 5, 10, 20, 40)
GAMMAS = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
MASSES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
POOL_SIZES = (20, 36, 100, 300, 1000, 2000, 5000)
_FEW, _MANY = 3, 20
_SETTINGS: tuple[AccuracySetting, ...] = ("id", "ood")
_MASS_CANDIDATES = 8
"""Most candidates while the mass is varied, so that the mass and not the limit decides."""

Point = dict[str, Any]
OnPoint = Callable[[str, str], None]


class SensitivityBench:
    """The dimensions over one testbed.

    Args:
        bench: the loaded testbed.
        strategy: whose accuracy is looked at.
        on_point: told about each finished point.
    """

    def __init__(
        self, bench: AccuracyBench, *, strategy: str = DEFAULT_STRATEGY, on_point: OnPoint | None = None
    ) -> None:
        self._bench = bench
        self._strategy = strategy
        self._on_point = on_point
        self.dimensions: Mapping[str, Callable[[], list[Point]]] = {
            "samples": self.samples,
            "unequal_samples": self.unequal_samples,
            "gamma": lambda: self.gamma(RocBasis.SVD),
            "gamma_trained_basis": lambda: self.gamma(RocBasis.TRAINED),
            "candidate_mass": self.candidate_mass,
            "encoder": self.encoder,
            "pool_size": self.pool_size,
            "self_portrait": self.self_portrait,
        }

    def samples(self) -> list[Point]:
        """Sample texts an adapter, `m`: the first so many; where `fit` lines run out, lines of the split that is not
        asked follow, and where these do, there are no more."""
        texts = self._all_texts()
        points: list[Point] = []
        for count in SAMPLE_COUNTS:
            planner = self._planner({name: found[:count] for name, found in texts.items()})
            used = fmean(min(count, len(found)) for found in texts.values())
            points.append(self._point("samples", count, planner, mean_samples=used))
        return points

    def unequal_samples(self) -> list[Point]:
        """Few samples for some adapters and many for others: by turns, and as the draw has it. The shares of the two
        kinds are told apart."""
        names = sorted(self._bench.adapters)
        texts = self._bench.sample_texts
        generator = np.random.default_rng(self._bench.seed)
        counts = {
            f"every second has {_FEW}": {name: _FEW if idx % 2 else _MANY for idx, name in enumerate(names)},
            "1 to 20 at random": {name: int(generator.integers(1, _MANY + 1)) for name in names},
            f"all have {_MANY}": dict.fromkeys(names, _MANY),
        }
        points: list[Point] = []
        for label, of in counts.items():
            planner = self._planner({name: list(texts[name])[: of[name]] for name in names})
            few = {name for name in names if of[name] <= 5}
            points.append(self._point("unequal_samples", label, planner, few=few))
        return points

    def gamma(self, basis: RocBasis) -> list[Point]:
        """The share of ranks that a token may switch on; a sure request gets no more for being sure."""
        name = "gamma" if basis is RocBasis.SVD else "gamma_trained_basis"
        return [
            self._point(name, gamma, None, changes={"gamma": gamma, "confidence_following": False, "basis": basis})
            for gamma in GAMMAS
        ]

    def candidate_mass(self) -> list[Point]:
        """The posterior mass that the candidates must hold."""
        return [
            self._point(
                "candidate_mass", mass, None, changes={"candidate_mass": mass, "max_candidates": _MASS_CANDIDATES}
            )
            for mass in MASSES
        ]

    def encoder(self) -> list[Point]:
        """Other sentence encoders; one that is not installed is said to be so."""
        points: list[Point] = []
        for name, make in ENCODERS.items():
            try:
                encoder = make()
            except Unavailable as error:
                points.append({"value": name, "left_out": f"{error.message} {error.remedy}"})
                continue
            bench = self._bench
            asked = ask(bench.testbed, encoder, split=bench.split, limit_per_task=bench.limit_per_task)
            profiles = {
                one: profile_of(one, bench.adapters[one], bench.sample_texts[one], encoder) for one in bench.adapters
            }
            planner = Planner(profiles, seed=bench.seed)
            points.append(self._point("encoder", name, planner, asked=asked))
        return points

    def pool_size(self) -> list[Point]:
        """Routing alone in larger pools: the testbed's adapters among strangers drawn from the pool's own distribution;
        a smaller pool keeps the tasks' own adapters that it has room for."""
        bench = self._bench
        profiles = bench.profiles()
        family_of = {line.task: line.family for line in bench.testbed.lines}
        points: list[Point] = []
        for size in POOL_SIZES:
            pool = crowded(profiles, size=size, seed=bench.seed)
            planner = Planner(pool, seed=bench.seed)
            lines = [line for line in bench.asked.by_setting["id"] if line.task in pool]
            hits: list[tuple[bool, bool, bool]] = []
            for line in lines:
                z_E = bench.asked.embedding_of[line.prompt]
                decision = planner.decide(line.prompt, z_E, self._strategy)
                names = [one.adapter_name for one in _by_posterior(decision)]
                passed = planner.decide(line.prompt, z_E, self._strategy, exclude=frozenset({line.task}))
                sibling = next((one.adapter_name for one in _by_posterior(passed)), "")
                hits.append((names[:1] == [line.task], line.task in names[:3], family_of.get(sibling) == line.family))
            first, among_three, family = np.mean(hits, axis=0)
            points.append(
                {
                    "value": size,
                    "own_first": float(first),
                    "own_among_three": float(among_three),
                    "removed_family_first": float(family),
                    "n": len(lines),
                    "temperature": planner.router().temperature,
                }
            )
            self._tell("pool_size", str(size))
        return points

    def self_portrait(self) -> list[Point]:
        """Profiles made of what the adapters write by themselves, instead of sample texts. Takes minutes."""
        bench = self._bench
        sources = ProfileBench(bench.testbed, bench.encoder, split="dev", limit_per_task=1).texts_by_source(
            lambda stage: self._tell("self_portrait", stage)
        )
        points: list[Point] = []
        for source, texts in sources.items():
            known = {name: found for name, found in texts.items() if found}
            points.append(self._point("self_portrait", source, self._planner(known)))
        return points

    def _all_texts(self) -> dict[str, list[str]]:
        bench = self._bench
        spare = "dev" if bench.split == "test" else "test"
        return {
            name: [*texts, *(line.prompt for line in bench.testbed.lines_of(name, spare))]
            for name, texts in bench.sample_texts.items()
        }

    def _planner(self, texts: Mapping[str, Sequence[str]]) -> Planner:
        bench = self._bench
        profiles: dict[str, AdapterProfile] = {
            name: profile_of(name, bench.adapters[name], found, bench.encoder) for name, found in texts.items()
        }
        return Planner(profiles, seed=bench.seed)

    def _point(
        self,
        dimension: str,
        value: object,
        planner: Planner | None,
        *,
        few: set[str] | None = None,
        mean_samples: float | None = None,
        **options: Any,
    ) -> Point:
        bench = self._bench
        point: Point = {"value": value}
        if mean_samples is not None:
            point["mean_samples"] = mean_samples
        for setting in _SETTINGS:
            outcomes = bench.outcomes(self._strategy, setting, planner=planner, **options)
            point[setting] = _described(outcomes, bench.seed)
            if few:
                point[setting]["few"], point[setting]["many"] = _split(outcomes, few)
        self._tell(dimension, str(value))
        return point

    def _tell(self, dimension: str, what: str) -> None:
        if self._on_point is not None:
            self._on_point(dimension, what)


def _by_posterior(decision: RoutingDecision) -> list[CandidateScore]:
    return sorted(decision.candidates, key=lambda candidate: -candidate.posterior)


def _described(outcomes: Outcomes, seed: int) -> dict[str, Any]:
    return {
        "exact_match": outcomes.exact_match,
        "ci": list(interval(resampled(outcomes, seed=seed))),
        "own_first": fmean(name == line.task for name, line in zip(outcomes.chosen, outcomes.lines, strict=True)),
        "candidates": fmean(outcomes.num_candidates),
        "rocs": fmean(outcomes.num_rocs),
    }


def _split(outcomes: Outcomes, few: set[str]) -> tuple[float | None, float | None]:
    """Exact match of the tasks whose adapters have few samples, and of the others."""
    kinds: dict[bool, list[bool]] = {True: [], False: []}
    for line, is_right in zip(outcomes.lines, outcomes.is_right, strict=True):
        kinds[line.task in few].append(is_right)
    first, second = (fmean(found) if found else None for found in (kinds[True], kinds[False]))
    return first, second
