"""The strategies of the sequence level, by name. One file each; what they share is `Strategy`."""

from __future__ import annotations

from hilora.errors import UnknownAdapter
from hilora.routing_plan import GateRule, PlanPreparation, PreparationMethod, RoutingMode
from hilora.strategies.base_alone import BaseStrategy
from hilora.strategies.learned_gates import LearnedGateStrategy
from hilora.strategies.lego import LegoStrategy
from hilora.strategies.likelihood import LikelihoodStrategy
from hilora.strategies.logo import LogoStrategy
from hilora.strategies.lorahub import LorahubStrategy
from hilora.strategies.lorauter import LorauterStrategy
from hilora.strategies.oracle import OracleStrategy
from hilora.strategies.retriever import RetrieverStrategy
from hilora.strategies.strategy import RoutingQuestion, Strategy
from hilora.strategies.task_vdb import TaskVdbStrategy
from hilora.strategies.token_choice import TokenChoiceStrategy
from hilora.strategies.uniform import UniformStrategy

__all__ = ["STRATEGY_NAMES", "RoutingQuestion", "Strategy", "strategy_named"]

_STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        LikelihoodStrategy(name="hilora", mode=RoutingMode.CALIBRATED),
        LikelihoodStrategy(name="hilora-paper", mode=RoutingMode.PAPER),
        RetrieverStrategy(name="retriever-selection", num_nearest=1, most=1),
        RetrieverStrategy(name="retriever-mixture", num_nearest=3),
        RetrieverStrategy(
            name="retriever-fusion", num_nearest=3, preparation=PlanPreparation(method=PreparationMethod.FUSION)
        ),
        LearnedGateStrategy(name="ramole", rule=GateRule.RAMOLE, num_competing=3, by_cosine=True),
        LegoStrategy(),
        # PEFT's ArrowConfig keeps the best 3 of a token.
        TokenChoiceStrategy(name="arrow", rule=GateRule.ARROW, top_k=3),
        TokenChoiceStrategy(name="spectr", rule=GateRule.SPECTR),
        TokenChoiceStrategy(name="seqr", rule=GateRule.SEQR),
        LorauterStrategy(),
        LogoStrategy(),
        LorahubStrategy(),
        LearnedGateStrategy(name="phatgoose", rule=GateRule.PHATGOOSE, num_competing=8, top_k=2),
        TaskVdbStrategy(),
        UniformStrategy(),
        BaseStrategy(),
        OracleStrategy(),
    )
}

STRATEGY_NAMES = tuple(_STRATEGIES)
"""All names, HiLoRA's own first."""


def strategy_named(name: str) -> Strategy:
    """The strategy of a name.

    Raises:
        UnknownAdapter: `unknown_strategy`.
    """
    strategy = _STRATEGIES.get(name)
    if strategy is None:
        raise UnknownAdapter(
            f"The strategy {name[:64]!r} does not exist.",
            code="unknown_strategy",
            remedy=f"Use one of {', '.join(STRATEGY_NAMES)}.",
            place="strategy",
        )
    return strategy
