"""What sequence-level routing decides for one request, as frozen values.

A `RoutingPlan` is all a worker needs: whose rank-one components (ROCs) take part, how many each may
switch on, and by what rule. A `RoutingDecision` is the plan together with its reasons, for people.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

from hilora.adapter import RocBasis


class RocScore(StrEnum):
    """By what a token's ROCs compete (algorithm.md, token level)."""

    ACTIVATION = "activation"
    """`|a . x|`, the paper's."""
    CONTRIBUTION = "contribution"
    """`|a . x| * ||b||`: invariant under `(a, b) -> (t a, b / t)`."""


class GateScope(StrEnum):
    """Among which ROCs they compete."""

    PER_ADAPTER = "per_adapter"
    """The `o_i` best of each adapter."""
    GLOBAL = "global"
    """The `O = sum o_i` best over the union of the candidates, by `|weight| * score`."""


class GateRule(StrEnum):
    """By what rule a token's factor of each ROC is found (algorithm.md, "Other rules")."""

    ROCS = "rocs"
    """The ROCs of largest score act, with a factor that is constant per adapter: HiLoRA, and with full budgets a pinned
    adapter or a mixture."""
    ARROW = "arrow"
    """Adapters weighted by `|v_i . x|`, `v_i` the first right singular vector of the update."""
    SPECTR = "spectr"
    """Adapters weighted by the length of their output."""
    SEQR = "seqr"
    """The adapter of longest output alone."""
    PHATGOOSE = "phatgoose"
    """Adapters weighted by a learned vector each."""
    RAMOLE = "ramole"
    """Adapters weighted by learned attention over their outputs."""
    SMORA = "smora"
    """ROCs weighted by a learned row each."""

    @property
    def is_learned(self) -> bool:
        """Whether it needs a gate artifact."""
        return self in _LEARNED_RULES

    @property
    def required_basis(self) -> RocBasis | None:
        """The only basis it has a meaning in, if there is one."""
        return _BASIS_OF_RULE.get(self)


_LEARNED_RULES = frozenset({GateRule.PHATGOOSE, GateRule.RAMOLE, GateRule.SMORA})
_BASIS_OF_RULE = {
    GateRule.ARROW: RocBasis.SVD,
    GateRule.SPECTR: RocBasis.SVD,
    GateRule.SEQR: RocBasis.SVD,
    GateRule.SMORA: RocBasis.TRAINED,
}


class RoutingMode(StrEnum):
    """How likelihoods become candidates and budgets."""

    PAPER = "paper"
    """Equations E3-E6 literally: full shrunk covariances, multinomial sampling."""
    CALIBRATED = "calibrated"
    """Pooled empirical-Bayes scores, fitted temperature, deterministic counts."""
    EXPLICIT = "explicit"
    """The client named the adapter, or the base: nothing was chosen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RocBudget:
    """One adapter's share of a plan."""

    adapter_id: str
    adapter_name: str
    lora_rank: int
    """`r_i`: the ROCs the adapter has (its largest module's)."""
    num_rocs: int
    """`o_i`: the ROCs a token may switch on, `0 <= o_i <= r_i`. A module of rank `r` gets
    `round_half_up(r * o_i / r_i)`, at least 1 where `o_i > 0`."""
    weight: float = 1.0
    """Factor of the adapter's output; a negative one turns it around."""
    reading_weight: float | None = None
    """The factor before the prompt's last token, where it is another one; None: `weight` throughout."""

    def __post_init__(self) -> None:
        if not 0 <= self.num_rocs <= self.lora_rank:
            raise ValueError(f"num_rocs {self.num_rocs} is outside 0..{self.lora_rank}")

    def num_rocs_in(self, module_rank: int) -> int:
        """The budget of one module, which may have fewer ROCs than the adapter's largest one."""
        if self.num_rocs == 0 or module_rank == 0:
            return 0
        # Integer arithmetic: round(r * o / r_i) half up, the same on every machine.
        return max(1, (2 * module_rank * self.num_rocs + self.lora_rank) // (2 * self.lora_rank))


@dataclass(frozen=True, kw_only=True, slots=True)
class GateParameters:
    """The token-level rule of a plan.

    Raises:
        ValueError: a number outside its range, a basis in which the rule has no meaning, a learned rule without a gate.
    """

    score: RocScore = RocScore.ACTIVATION
    scope: GateScope = GateScope.PER_ADAPTER
    basis: RocBasis = RocBasis.SVD
    eta: float = 1.0
    """Factor of the sum of the kept ROCs (the paper's variance normalisation, resolved to a number)."""
    rule: GateRule = GateRule.ROCS
    top_k: int = 0
    """How many adapters (under `SMORA`: how many ROCs) a token keeps; 0 keeps all. `ROCS` and `SEQR` have no use for
    it."""
    temperature: float = 1.0
    """Divides the scores before their softmax."""
    gate_id: str | None = None
    """The gate artifact of a learned rule, an immutable version of it."""

    def __post_init__(self) -> None:
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 0")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature is {self.temperature}; it must be finite and above 0")
        if self.rule.required_basis not in {None, self.basis}:
            raise ValueError(f"rule {self.rule} has no meaning in the {self.basis} basis")
        if self.rule.is_learned and not self.gate_id:
            raise ValueError(f"rule {self.rule} needs a gate_id")
        if self.gate_id is not None and not self.rule.is_learned:
            raise ValueError(f"rule {self.rule} has no use for a gate_id")


class PreparationMethod(StrEnum):
    """What a worker makes of a plan's adapters before the first token (algorithm.md, "Prepared plans")."""

    FUSION = "fusion"
    """One adapter whose factors are the weighted sums of theirs, cross terms included (LoraRetriever)."""
    LEGO = "lego"
    """One adapter of a few components, the centres of clusters of theirs (LoRA-LEGO)."""
    LOGO = "logo"
    """Those whose output at the prompt's last token is longest, weighted by its length (LoGo)."""

    @property
    def is_merge(self) -> bool:
        """Whether one adapter takes the place of all."""
        return self is not PreparationMethod.LOGO


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanPreparation:
    """What is done with a plan's adapters first.

    Raises:
        ValueError: a negative number, or one that the method has no use for.
    """

    method: PreparationMethod
    num_kept: int = 0
    """`LEGO`: components of the merged adapter in each layer, 0 for as many as the largest of the adapters has. `LOGO`:
    adapters, 0 for all. `FUSION` has no use for it."""

    def __post_init__(self) -> None:
        if self.num_kept < 0:
            raise ValueError(f"num_kept is {self.num_kept}; it must be at least 0")
        if self.num_kept and self.method is PreparationMethod.FUSION:
            raise ValueError("a fusion has as many components as the largest of its adapters")


@dataclass(frozen=True, kw_only=True)
class RoutingPlan:
    """The work order of one request. No budgets means the base model alone.

    A plan has one phase, or two: then the prompt is *read* with other factors than those the answer is *written* with
    (docs/adr/0037-plans-of-two-phases.md). The prompt's last token, whose logits give the answer's first, is written.

    Raises:
        ValueError: a plan that is prepared grants parts of adapters, or has another rule than `ROCS`, or two phases; a
            plan of two phases has another rule than `ROCS`.
    """

    budgets: tuple[RocBudget, ...] = ()
    gate: GateParameters = GateParameters()
    catalog_generation: int = 0
    """The catalogue the adapters were chosen from; a worker must have reached it."""
    preparation: PlanPreparation | None = None
    """What the worker does with the adapters first; None for nothing."""

    def __post_init__(self) -> None:
        if self.has_phases and self.gate.rule is not GateRule.ROCS:
            raise ValueError(f"rule {self.gate.rule} weighs adapters itself and knows no reading weights")
        if self.preparation is None:
            return
        if self.has_phases:
            raise ValueError("a plan that is prepared has one phase")
        if self.gate.rule is not GateRule.ROCS:
            raise ValueError(f"rule {self.gate.rule} does not go with a plan that is prepared")
        if any(budget.num_rocs != budget.lora_rank for budget in self.budgets):
            raise ValueError("a plan that is prepared takes adapters as wholes")

    @property
    def num_rocs(self) -> int:
        """`O`: ROCs a token may switch on in all."""
        return sum(budget.num_rocs for budget in self.budgets)

    @property
    def is_base_only(self) -> bool:
        """Whether no ROC can act."""
        return self.num_rocs == 0

    @cached_property
    def has_phases(self) -> bool:
        """Whether the prompt is read with other factors than the answer is written with."""
        return any(budget.reading_weight is not None for budget in self.budgets)

    @property
    def reading(self) -> RoutingPlan:
        """What holds for the prompt's tokens but the last: a plan of one phase, this one where it has no other."""
        return self._phases[0] if self.has_phases else self

    @property
    def writing(self) -> RoutingPlan:
        """What holds from the prompt's last token on: a plan of one phase, this one where it has no other."""
        return self._phases[1] if self.has_phases else self

    @cached_property
    def _phases(self) -> tuple[RoutingPlan, RoutingPlan]:
        return self._phase(is_reading=True), self._phase(is_reading=False)

    def _phase(self, *, is_reading: bool) -> RoutingPlan:
        # An adapter of factor 0 is left out: its components would compete with those that act.
        own = [
            replace(
                budget,
                weight=budget.reading_weight if is_reading and budget.reading_weight is not None else budget.weight,
                reading_weight=None,
            )
            for budget in self.budgets
        ]
        return replace(self, budgets=tuple(budget for budget in own if budget.weight != 0.0))

    @cached_property
    def digest(self) -> str:
        """A hash of all that changes the arithmetic (not of the catalogue generation): equal digests on
        an equal base give equal logits, so it is part of every cache key."""
        payload: dict[str, object] = {
            "budgets": [(b.adapter_id, b.lora_rank, b.num_rocs, b.weight) for b in self.budgets],
            "gate": _fields_of(self.gate),
        }
        if self.preparation is not None:
            payload["preparation"] = _fields_of(self.preparation)
        if self.has_phases:
            payload["reading_weights"] = [budget.reading_weight for budget in self.budgets]
        return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()


def _fields_of(flat: GateParameters | PlanPreparation) -> dict[str, object]:
    # `asdict` would copy each value, and every request has a digest.
    return {name: getattr(flat, name) for name in flat.__slots__}


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateScore:
    """Why an adapter is, or is not, in a plan."""

    adapter_id: str
    adapter_name: str
    log_likelihood: float
    """Score of the mode in use: E3 in `paper`, the predictive log-likelihood in `calibrated`."""
    log_likelihood_ratio: float
    """Log-likelihood minus that of a task we have no adapter for: 0 is "no better than a new task"."""
    posterior: float
    """Calibrated probability that this adapter is the right one; sums to 1 over the pool."""
    num_rocs: int
    """ROCs granted; 0 for a runner-up that is only reported."""
    weight: float


@dataclass(frozen=True, kw_only=True)
class RoutingDecision:
    """A plan and its reasons: what `POST /v1/route` shows."""

    plan: RoutingPlan
    mode: RoutingMode
    candidates: tuple[CandidateScore, ...]
    """The chosen adapters first, then the best runners-up, each group by descending posterior."""
    is_out_of_distribution: bool
    """Whether no adapter explains the text better than a new task would."""
    reason: str
    """One sentence for a person."""
