"""By which rules adapters are chosen: the client's wishes over the strategy's own rules and the router's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hilora.errors import InvalidInput
from hilora.routing_plan import RoutingMode
from hilora.routing_settings import RoutingSettings, ScoreRule
from hilora.strategies import Strategy, strategy_named
from services.router.routing_options import AUTO_MODEL, LowConfidencePolicy, RoutedPart, RoutingOptions

STRATEGY_OF_MODE = {RoutingMode.CALIBRATED: "hilora", RoutingMode.PAPER: "hilora-paper"}
"""HiLoRA has two modes, and each is a strategy."""

_AUTO_PREFIX = f"{AUTO_MODEL}:"


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutingDefaults:
    """What holds where a request does not say."""

    strategy: str = "hilora"
    gamma: float | None = None
    """Share of the candidates' ranks that may be active; None keeps the strategy's own."""
    max_candidates: int | None = None
    """Most adapters in a plan; None keeps the strategy's own."""
    score_rule: ScoreRule = ScoreRule.STACKED
    """Whether the wording of a text counts beside its embedding."""
    combine_skills: bool = True
    """Whether a text that only two adapters together explain is read with both."""
    low_confidence: LowConfidencePolicy = LowConfidencePolicy.TOP
    routed_part: RoutedPart = RoutedPart.LAST_USER
    routed_turns: int = 3
    """The user's messages that `RoutedPart.WINDOW` takes."""
    max_routed_chars: int = 8192
    """Characters that a decision looks at."""
    gate_ids: Mapping[str, str] = field(default_factory=dict[str, str])
    """Learned gates by the name of the strategy that uses them."""
    learned_weights: Mapping[str, float] = field(default_factory=dict[str, float])
    """Factors by adapter name, for the strategy `lorahub`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutingRules:
    """How one text is chosen for."""

    strategy: Strategy
    settings: RoutingSettings


def names_strategy(model: str) -> bool:
    """Whether a `model` value leaves the choice to the router: `auto`, `auto:<strategy>`, or nothing."""
    return model in {AUTO_MODEL, ""} or model.startswith(_AUTO_PREFIX)


def strategy_of_model(model: str) -> str | None:
    """The strategy that `auto:<strategy>` names; None for other values.

    Raises:
        UnknownAdapter: `unknown_strategy`.
    """
    return strategy_named(model.removeprefix(_AUTO_PREFIX)).name if model.startswith(_AUTO_PREFIX) else None


def rules_for(options: RoutingOptions, defaults: RoutingDefaults) -> RoutingRules:
    """The rules of a request that leaves the choice to the router.

    Raises:
        UnknownAdapter: `unknown_strategy`.
        InvalidInput: `contradicting_options`.
    """
    strategy = strategy_named(_strategy_name(options) or defaults.strategy)
    if options.mode is not None and STRATEGY_OF_MODE.get(options.mode) != strategy.name:
        raise contradiction(f"The mode {options.mode.value!r} is not one of the strategy {strategy.name!r}.", "mode")
    wishes = {
        "gamma": options.gamma if options.gamma is not None else defaults.gamma,
        "max_candidates": options.max_candidates if options.max_candidates is not None else defaults.max_candidates,
        "score_rule": defaults.score_rule,
        # It can be switched off here, not on for a strategy that has no use for it.
        "combine_skills": None if defaults.combine_skills else False,
        "min_candidates": options.min_candidates,
        "roc_score": options.roc_score,
        "gate_scope": options.gate_scope,
    }
    settings = strategy.settings
    changes = {name: value for name, value in wishes.items() if value is not None and value != getattr(settings, name)}
    return RoutingRules(strategy=strategy, settings=replace(settings, **changes) if changes else settings)


def _strategy_name(options: RoutingOptions) -> str | None:
    by_model = strategy_of_model(options.model)
    if by_model is not None and options.strategy not in {None, by_model}:
        raise contradiction(f"The model names the strategy {by_model!r}, and strategy another.", "strategy")
    named = by_model or options.strategy
    # A mode alone means HiLoRA, whatever the router's own strategy is.
    return named or (STRATEGY_OF_MODE.get(options.mode) if options.mode is not None else None)


def check_single_choice(options: RoutingOptions) -> None:
    """Refuse a request that says in two ways what to use.

    Raises:
        InvalidInput: `contradicting_options`.
    """
    ways = [
        ("model", not names_strategy(options.model)),
        ("plan_id", options.plan_id is not None),
        ("adapters", bool(options.adapters)),
        ("strategy", options.strategy is not None or strategy_of_model(options.model) is not None),
    ]
    given = [name for name, is_given in ways if is_given]
    if len(given) > 1:
        raise contradiction(f"{' and '.join(given)} each say which adapters to use.", given[-1])


def contradiction(message: str, place: str) -> InvalidInput:
    """The refusal of options that cannot both be followed."""
    return InvalidInput(message, code="contradicting_options", remedy="Send one of them.", place=place)
