"""Plans and sessions with every field at a value that is not its default."""

from __future__ import annotations

from hilora.adapter import RocBasis
from hilora.routing_plan import GateParameters, GateRule, GateScope, RocBudget, RocScore, RoutingMode, RoutingPlan
from services.router.plan_record import PlanRecord, SessionRecord


def plan_record(plan_id: str = "plan-1", *, weight: float = 0.1) -> PlanRecord:
    """A plan of two adapters."""
    return PlanRecord(
        plan_id=plan_id,
        mode=RoutingMode.PAPER,
        strategy="hilora-paper",
        plan=RoutingPlan(
            budgets=(
                RocBudget(adapter_id="a@1", adapter_name="a", lora_rank=8, num_rocs=3, weight=weight),
                RocBudget(adapter_id="b@2", adapter_name="b", lora_rank=16, num_rocs=16, weight=1 / 3),
            ),
            gate=GateParameters(
                score=RocScore.CONTRIBUTION,
                scope=GateScope.GLOBAL,
                basis=RocBasis.TRAINED,
                eta=0.7071067811865476,
                rule=GateRule.SMORA,
                top_k=4,
                temperature=1.5,
                gate_id="g@3",
            ),
            catalog_generation=42,
        ),
    )


def session_record(session_id: str = "s", *, turn: int = 3) -> SessionRecord:
    """A session in its third turn."""
    return SessionRecord(session_id=session_id, turn=turn, options_digest="d" * 32, kept=plan_record())
