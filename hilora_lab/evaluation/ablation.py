"""Routing configurations side by side on a testbed: which part of the method earns what, on this pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from hilora.adapter import RocBasis
from hilora.errors import InvalidInput
from hilora.routing_plan import GateScope, RocScore, RoutingMode
from hilora.routing_settings import BudgetRule, EtaRule, RoutingSettings, UnknownTaskRule, WeightRule
from hilora_lab.evaluation.offline import OfflineBench, OfflineScore, OfflineSetting

ABLATION_SETTINGS: tuple[OfflineSetting, ...] = ("id", "ood")


@dataclass(frozen=True, kw_only=True, slots=True)
class AblationRow:
    """One configuration's scores."""

    name: str
    scores: Mapping[OfflineSetting, OfflineScore]


def configurations() -> dict[str, RoutingSettings]:
    """The default, and departures from it in one respect each; plus the paper's method taken literally."""
    default = RoutingSettings()
    one = replace(default, max_candidates=1, confidence_following=False, gate_scope=GateScope.PER_ADAPTER)
    three = replace(
        default,
        min_candidates=3,
        max_candidates=3,
        candidate_mass=1.0,
        unknown_task_rule=UnknownTaskRule.TOP_K,
        gamma=1.0,
    )
    rows = {"default": default, "top-1, full budget": replace(one, gamma=1.0)}
    for basis in (RocBasis.SVD, RocBasis.TRAINED):
        for gamma in (0.2, 0.4, 0.6):
            rows[f"top-1, gamma {gamma}, {basis} basis"] = replace(one, gamma=gamma, basis=basis)
    rows["top-1, gamma 0.4, trained basis, contribution"] = replace(
        one, gamma=0.4, basis=RocBasis.TRAINED, roc_score=RocScore.CONTRIBUTION
    )
    for rule in WeightRule:
        rows[f"top-3, full budget, weights {rule}"] = replace(three, weight_rule=rule)
    for eta in (EtaRule.SQRT, EtaRule.MEAN):
        rows[f"top-3, full budget, weights none, eta {eta}"] = replace(three, weight_rule=WeightRule.NONE, eta_rule=eta)
    rows["default, gamma 0.4 without following confidence"] = replace(default, confidence_following=False)
    rows["default, gate per adapter"] = replace(default, gate_scope=GateScope.PER_ADAPTER)
    rows["default, counts by chance"] = replace(default, budget_rule=BudgetRule.MULTINOMIAL)
    rows["default, trained basis"] = replace(default, basis=RocBasis.TRAINED)
    rows["paper, literally"] = RoutingSettings.for_mode(RoutingMode.PAPER)
    return rows


def run_ablation(
    bench: OfflineBench,
    names: Sequence[str] | None = None,
    on_row: Callable[[AblationRow], None] | None = None,
) -> list[AblationRow]:
    """Score the configurations named, or all of them, in the settings `id` and `ood`.

    Raises:
        InvalidInput: `unknown_configuration`.
    """
    known = configurations()
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise InvalidInput(
            f"No such configuration: {', '.join(unknown)}.",
            code="unknown_configuration",
            remedy=f"Choose from {'; '.join(known)}.",
            place="names",
        )
    rows: list[AblationRow] = []
    for name in names or known:
        scores: dict[OfflineSetting, OfflineScore] = {
            setting: bench.score(setting, known[name]) for setting in ABLATION_SETTINGS
        }
        rows.append(AblationRow(name=name, scores=scores))
        if on_row is not None:
            on_row(rows[-1])
    return rows
