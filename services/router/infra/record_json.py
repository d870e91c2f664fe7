"""Plans and sessions as JSON, and back. What another version of this program wrote and cannot be read is forgotten."""

from __future__ import annotations

import json
from typing import Any

from hilora.adapter import RocBasis
from hilora.routing_plan import (
    GateParameters,
    GateRule,
    GateScope,
    PlanPreparation,
    PreparationMethod,
    RocBudget,
    RocScore,
    RoutingMode,
    RoutingPlan,
)
from services.common.log import get_logger
from services.router.plan_record import PlanRecord, SessionRecord

_log = get_logger(__name__)


def encode_plan(record: PlanRecord) -> bytes:
    """A plan as bytes."""
    return json.dumps(_plan_fields(record)).encode()


def decode_plan(data: bytes) -> PlanRecord | None:
    """What `encode_plan` wrote; None for anything else."""
    try:
        return _plan_of(json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("plan_unreadable", error=repr(error))
        return None


def encode_session(record: SessionRecord) -> bytes:
    """Where a session stands, as bytes."""
    return json.dumps(
        {
            "session_id": record.session_id,
            "turn": record.turn,
            "options_digest": record.options_digest,
            "kept": _plan_fields(record.kept),
        }
    ).encode()


def decode_session(data: bytes) -> SessionRecord | None:
    """What `encode_session` wrote; None for anything else."""
    try:
        fields = json.loads(data)
        return SessionRecord(
            session_id=str(fields["session_id"]),
            turn=int(fields["turn"]),
            options_digest=str(fields["options_digest"]),
            kept=_plan_of(fields["kept"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("session_unreadable", error=repr(error))
        return None


def _plan_fields(record: PlanRecord) -> dict[str, Any]:
    plan, gate = record.plan, record.plan.gate
    return {
        "plan_id": record.plan_id,
        "mode": record.mode.value,
        "strategy": record.strategy,
        "catalog_generation": plan.catalog_generation,
        "budgets": [
            [budget.adapter_id, budget.adapter_name, budget.lora_rank, budget.num_rocs, budget.weight]
            for budget in plan.budgets
        ],
        # Beside the budgets, so that a plan of one phase is readable for versions that know no other.
        "reading_weights": [budget.reading_weight for budget in plan.budgets] if plan.has_phases else None,
        "gate": {
            "score": gate.score.value,
            "scope": gate.scope.value,
            "basis": gate.basis.value,
            "eta": gate.eta,
            "rule": gate.rule.value,
            "top_k": gate.top_k,
            "temperature": gate.temperature,
            "gate_id": gate.gate_id,
        },
        "preparation": None
        if plan.preparation is None
        else {"method": plan.preparation.method.value, "num_kept": plan.preparation.num_kept},
    }


def _plan_of(fields: dict[str, Any]) -> PlanRecord:
    gate = fields["gate"]
    # Plans that were written before there were any have none.
    preparation = fields.get("preparation")
    reading_weights = fields.get("reading_weights") or [None] * len(fields["budgets"])
    return PlanRecord(
        plan_id=str(fields["plan_id"]),
        mode=RoutingMode(fields["mode"]),
        strategy=None if fields["strategy"] is None else str(fields["strategy"]),
        plan=RoutingPlan(
            catalog_generation=int(fields["catalog_generation"]),
            preparation=None
            if preparation is None
            else PlanPreparation(
                method=PreparationMethod(preparation["method"]), num_kept=int(preparation["num_kept"])
            ),
            budgets=tuple(
                RocBudget(
                    adapter_id=str(adapter_id),
                    adapter_name=str(adapter_name),
                    lora_rank=int(lora_rank),
                    num_rocs=int(num_rocs),
                    weight=float(weight),
                    reading_weight=None if reading_weight is None else float(reading_weight),
                )
                for (adapter_id, adapter_name, lora_rank, num_rocs, weight), reading_weight in zip(
                    fields["budgets"], reading_weights, strict=True
                )
            ),
            gate=GateParameters(
                score=RocScore(gate["score"]),
                scope=GateScope(gate["scope"]),
                basis=RocBasis(gate["basis"]),
                eta=float(gate["eta"]),
                rule=GateRule(gate["rule"]),
                top_k=int(gate["top_k"]),
                temperature=float(gate["temperature"]),
                gate_id=None if gate["gate_id"] is None else str(gate["gate_id"]),
            ),
        ),
    )
