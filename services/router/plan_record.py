"""What is remembered of plans and sessions, as frozen values."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from hilora.routing_plan import RoutingMode, RoutingPlan


@dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """A plan that can be asked for again."""

    plan_id: str
    plan: RoutingPlan
    mode: RoutingMode
    """How it was chosen."""
    strategy: str | None
    """By which strategy; None where the client chose by itself."""


@dataclass(frozen=True, kw_only=True)
class SessionRecord:
    """Where a session stands after a turn."""

    session_id: str
    turn: int
    """Turns so far, from 1."""
    options_digest: str
    """Of the wishes that the plan was chosen under."""
    kept: PlanRecord


def plan_id_of(plan: RoutingPlan, *, tenant: str | None) -> str:
    """The id of a plan: bound to its arithmetic, to the catalogue it was made from and to whom it was made for."""
    parts = (plan.digest, str(plan.catalog_generation), "" if tenant is None else f"tenant {tenant}")
    return f"plan-{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:32]}"
