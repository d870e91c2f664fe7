"""The switches of sequence-level routing, with the defaults of each mode."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cache

from hilora.adapter import RocBasis
from hilora.gaussian import CovarianceFamily
from hilora.routing_plan import GateScope, RocScore, RoutingMode


class WeightRule(StrEnum):
    """How the candidates' posteriors become factors of their outputs; all but `NONE` sum to 1."""

    NONE = "none"
    """1 for each candidate (the paper's)."""
    POSTERIOR = "posterior"
    """In proportion to `p`."""
    SHARPENED = "sharpened"
    """In proportion to `p^2`: mixes only what is nearly equally likely."""
    SQRT = "sqrt"
    """In proportion to `sqrt(p)`."""


class ScoreRule(StrEnum):
    """What the calibrated mode's posterior is made of."""

    STACKED = "stacked"
    """The Gaussian and the wording, with weights fitted to the pool (`hilora.stacked_scores`)."""
    GAUSSIAN = "gaussian"
    """The Gaussian alone."""


class BudgetRule(StrEnum):
    """How the budget `O` is divided among the candidates."""

    MULTINOMIAL = "multinomial"
    """Drawn from the request's seed (E6 of the paper)."""
    LARGEST_REMAINDER = "largest_remainder"
    """In proportion to the posterior, without chance."""


class EtaRule(StrEnum):
    """The factor of the sum of the kept ROCs."""

    NONE = "none"
    """1."""
    SQRT = "sqrt"
    """`sqrt(mean rank / O)`: the variance of the sum stays that of one average adapter."""
    MEAN = "mean"
    """1 over the number of candidates: the mean of their outputs."""


class UnknownTaskRule(StrEnum):
    """Which adapters take a text that none of them explains."""

    TOP_K = "top_k"
    """The `min_candidates` best ones, as in the paper's second branch."""
    MASS = "mass"
    """The same, but no more than hold the posterior mass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutingSettings:
    """How one request is routed. `for_mode` gives the defaults of a mode; use `dataclasses.replace` to depart.

    Raises:
        ValueError: a value outside its range, or a mode that chooses nothing.
    """

    mode: RoutingMode = RoutingMode.CALIBRATED
    covariance_family: CovarianceFamily = CovarianceFamily.POOLED_EB
    """What the scores are made of; the calibrated mode knows `POOLED_EB` only."""
    score_rule: ScoreRule = ScoreRule.STACKED
    """Calibrated mode: whether the wording counts where the text's is known."""
    covariance_shrinkage: float = 0.5
    """Share of the isotropic part under `CovarianceFamily.FULL`."""
    gamma: float = 0.4
    """Share of the candidates' ranks that a token may switch on (E5), within (0, 1]."""
    min_candidates: int = 3
    """`k` of E4: how many adapters take a text that none explains."""
    max_candidates: int = 3
    """Most adapters in a plan; it bounds what one request can ask of a worker."""
    candidate_mass: float = 0.9
    """Calibrated mode: the candidates are the fewest adapters holding this posterior mass."""
    unknown_task_rule: UnknownTaskRule = UnknownTaskRule.MASS
    """Calibrated mode: candidates of a text that no adapter explains."""
    combine_skills: bool = True
    """Calibrated mode: a text that no adapter explains and two do together is read with both and answered by the one
    whose skill it asks for first, where the text and its wording are known and two candidates are allowed."""
    weight_rule: WeightRule = WeightRule.SHARPENED
    budget_rule: BudgetRule = BudgetRule.LARGEST_REMAINDER
    confidence_following: bool = True
    """Grant at least one average adapter's rank, so that a sure request behaves like its one adapter."""
    eta_rule: EtaRule = EtaRule.NONE
    roc_score: RocScore = RocScore.ACTIVATION
    gate_scope: GateScope = GateScope.GLOBAL
    basis: RocBasis = RocBasis.SVD

    def __post_init__(self) -> None:
        if self.mode is RoutingMode.EXPLICIT:
            raise ValueError("the explicit mode chooses nothing: use explicit_decision")
        if self.mode is RoutingMode.CALIBRATED and self.covariance_family is not CovarianceFamily.POOLED_EB:
            raise ValueError("the calibrated mode scores with pooled_eb")
        if not 0.0 < self.covariance_shrinkage <= 1.0:
            raise ValueError(f"covariance_shrinkage {self.covariance_shrinkage} is outside (0, 1]")
        if not 0.0 < self.gamma <= 1.0:
            raise ValueError(f"gamma {self.gamma} is outside (0, 1]")
        if not 0.0 < self.candidate_mass <= 1.0:
            raise ValueError(f"candidate_mass {self.candidate_mass} is outside (0, 1]")
        if self.min_candidates < 1 or self.max_candidates < 1:
            raise ValueError("min_candidates and max_candidates must be at least 1")

    @classmethod
    @cache
    def for_mode(cls, mode: RoutingMode) -> RoutingSettings:
        """The defaults of a mode.

        `CALIBRATED` is the class's own: posterior-weighted ROCs in the SVD basis compete over the union of the
        candidates. `PAPER` is arXiv 2510.12266 taken literally: unweighted trained ROCs, counts by chance, the
        variance normalisation of its text.

        Raises:
            ValueError: `EXPLICIT`, which has nothing to set.
        """
        if mode is RoutingMode.PAPER:
            return cls(
                mode=mode,
                covariance_family=CovarianceFamily.FULL,
                max_candidates=64,
                unknown_task_rule=UnknownTaskRule.TOP_K,
                weight_rule=WeightRule.NONE,
                budget_rule=BudgetRule.MULTINOMIAL,
                confidence_following=False,
                eta_rule=EtaRule.SQRT,
                gate_scope=GateScope.PER_ADAPTER,
                basis=RocBasis.TRAINED,
            )
        return cls(mode=mode)
