"""What adversarial adapters do to the answers that others' tasks get, under the default policy.

Each adversary comes into an honest pool alone, after several victims in turn. All tasks are asked with it and without
it; its victim's task is counted among the others, since the victim is one of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from hilora.adapter import adapter_id_of
from hilora_lab.accuracy.accuracy_bench import REVISION, AccuracyBench, profile_of
from hilora_lab.accuracy.adversaries import ADVERSARIES, Adversary, Scene
from hilora_lab.accuracy.asked import AccuracySetting
from hilora_lab.accuracy.outcomes import Outcomes, difference
from hilora_lab.accuracy.planner import DEFAULT_STRATEGY, Planner
from hilora_lab.accuracy.pool_flags import chosen_among, flags_of

MOST_LOST = 0.02
"""What others may lose."""
NUM_VICTIMS = 3
_PREFIX = "adversary-"
_SETTINGS: tuple[AccuracySetting, ...] = ("id", "ood")


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One adversary in the pool."""

    adversary: Adversary
    outcomes: dict[AccuracySetting, Outcomes]
    undefended: dict[AccuracySetting, Outcomes]
    """The same without the policy that flagged adapters are not chosen."""
    flags: tuple[str, ...]
    """What the product's checks say about it."""


def run_robustness(
    bench: AccuracyBench, *, strategy: str = DEFAULT_STRATEGY, on_attack: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Ask everything without and with each adversary.

    Returns:
        `{strategy, victims, honest, honest_flagged, adversaries: {NAME: {SETTING: {lost, ci, mean_lost,
        lost_without_policy, victim_lost, first}, flagged, flags, is_met}}}`. `lost` is what the mean over all tasks
        falls by after the worst of the victims, with its paired interval; `lost_without_policy` the same if flagged
        adapters were chosen like others; `victim_lost` what the victim's own task falls by on average; `first` the
        share of requests that the adversary led. `honest_flagged` are the honest adapters that are flagged, too.
    """
    generator = random.Random(f"{bench.seed}/robustness")
    victims = generator.sample(sorted(bench.adapters), k=min(NUM_VICTIMS, len(bench.adapters)))
    scene = Scene(
        testbed=bench.testbed,
        adapters=bench.adapters,
        texts=bench.sample_texts,
        num_texts=max(len(texts) for texts in bench.sample_texts.values()),
    )
    honest: dict[AccuracySetting, Outcomes] = {setting: bench.outcomes(strategy, setting) for setting in _SETTINGS}
    profiles = bench.profiles()
    honest_flags = flags_of(profiles, bench.adapters)
    report: dict[str, Any] = {
        "strategy": strategy,
        "victims": victims,
        "honest": {setting: outcomes.exact_match for setting, outcomes in honest.items()},
        "honest_flagged": {name: list(flags) for name, flags in honest_flags.items() if flags},
        "adversaries": {},
    }
    for name, make in ADVERSARIES.items():
        attacks: list[Attack] = []
        for place, victim in enumerate(victims):
            attacks.append(_attack(bench, make(scene, victim, generator), strategy, place=place))
            if on_attack is not None:
                on_attack(f"{name} of {victim}")
        report["adversaries"][name] = _described(attacks, honest, seed=bench.seed)
    return report


def _attack(bench: AccuracyBench, adversary: Adversary, strategy: str, *, place: int) -> Attack:
    name = f"{_PREFIX}{adversary.name}-{place}"
    bench.source.adapters[adapter_id_of(name, REVISION)] = adversary.adapter
    profile = profile_of(name, adversary.adapter, adversary.texts, bench.encoder)
    profiles = {**bench.profiles(), name: profile}
    flags = flags_of(profiles, {**bench.adapters, name: adversary.adapter})
    planner = Planner(chosen_among(profiles, flags), seed=bench.seed)
    open_to_all = Planner(profiles, seed=bench.seed)
    return Attack(
        adversary=adversary,
        outcomes={setting: bench.outcomes(strategy, setting, planner=planner) for setting in _SETTINGS},
        undefended={setting: bench.outcomes(strategy, setting, planner=open_to_all) for setting in _SETTINGS},
        flags=flags[name],
    )


def _described(attacks: Sequence[Attack], honest: dict[AccuracySetting, Outcomes], *, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for setting in _SETTINGS:
        gaps = [difference(honest[setting], attack.outcomes[setting], seed=seed) for attack in attacks]
        worst = max(range(len(gaps)), key=lambda idx: gaps[idx][0])
        found[setting] = {
            "lost": gaps[worst][0],
            "ci": list(gaps[worst][1]),
            "mean_lost": fmean(gap for gap, _ in gaps),
            "lost_without_policy": max(
                honest[setting].exact_match - attack.undefended[setting].exact_match for attack in attacks
            ),
            "victim_lost": fmean(_victim_loss(attack, honest[setting], setting) for attack in attacks),
            "first": fmean(
                sum(name.startswith(_PREFIX) for name in attack.outcomes[setting].chosen)
                / len(attack.outcomes[setting].chosen)
                for attack in attacks
            ),
        }
    flags = [attack.flags for attack in attacks]
    found["flagged"] = all(flags)
    found["flags"] = sorted({flag for one in flags for flag in one})
    found["is_met"] = found["flagged"] and all(found[setting]["lost"] <= MOST_LOST for setting in _SETTINGS)
    return found


def _victim_loss(attack: Attack, honest: Outcomes, setting: AccuracySetting) -> float:
    if not attack.adversary.victim:
        return 0.0
    place = honest.tasks.index(attack.adversary.victim)
    lost = honest.right_by_task[place] - attack.outcomes[setting].right_by_task[place]
    return float(lost / honest.asked_by_task[place])
