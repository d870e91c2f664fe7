"""Plans by their ids: remembered when they are made, used again as they were."""

from __future__ import annotations

from dataclasses import replace

from hilora.access import Requester
from hilora.errors import Conflict, InvalidInput, UnknownAdapter
from hilora.routing_explanation import unscored_decision
from hilora.routing_plan import RoutingDecision
from services.router.catalog import CatalogView
from services.router.plan_record import PlanRecord, plan_id_of
from services.router.ports import PlanStore

PLAN_ID_CHARS = 128
"""Longest text that is looked up as a plan's id."""


class Plans:
    """Remembers plans.

    Args:
        store: where they are.
    """

    def __init__(self, store: PlanStore) -> None:
        self._store = store

    async def remember(self, decision: RoutingDecision, *, strategy: str | None, tenant: str | None) -> PlanRecord:
        """Give a decision's plan its id."""
        record = PlanRecord(
            plan_id=plan_id_of(decision.plan, tenant=tenant),
            plan=decision.plan,
            mode=decision.mode,
            strategy=strategy,
        )
        await self.keep(record)
        return record

    async def keep(self, record: PlanRecord) -> None:
        """Remember a plan for longer."""
        await self._store.put(record.plan_id, record)

    async def recall(
        self, plan_id: str, *, view: CatalogView, requester: Requester, exclude: frozenset[str]
    ) -> tuple[PlanRecord, RoutingDecision]:
        """A plan of an earlier answer, stamped with the catalogue that still has all its adapters.

        Raises:
            UnknownAdapter: `plan_not_found`, also for a plan with adapters that do not exist for the requester.
            Conflict: `plan_gone`.
            InvalidInput: `excluded_model`.
        """
        record = await self._store.get(plan_id) if len(plan_id) <= PLAN_ID_CHARS else None
        if record is None:
            raise _not_found(plan_id)
        for budget in record.plan.budgets:
            adapter = view.adapters.get(budget.adapter_name)
            if adapter is not None and not adapter.access.admits(requester):
                raise _not_found(plan_id)
        if not all(view.has_version(budget.adapter_name, budget.adapter_id) for budget in record.plan.budgets):
            raise Conflict(
                f"An adapter version of the plan {plan_id!r} is gone.",
                code="plan_gone",
                remedy="Leave plan_id out, and pin the plan of the answer if you like.",
                place="plan_id",
            )
        excluded = sorted(exclude & {budget.adapter_name for budget in record.plan.budgets})
        if excluded:
            raise excluded_and_wanted(excluded[0], "plan_id")
        plan = replace(record.plan, catalog_generation=view.catalog_generation)
        return record, unscored_decision(plan, reason=f"The request pins the plan {plan_id}.")


def excluded_and_wanted(adapter_name: str, place: str) -> InvalidInput:
    """The refusal of an adapter that is asked for and excluded at once."""
    return InvalidInput(
        f"The adapter {adapter_name!r} is both asked for in {place} and excluded.",
        code="excluded_model",
        remedy="Drop it from exclude_adapters, or use model 'auto'.",
        place="exclude_adapters",
    )


def _not_found(plan_id: str) -> UnknownAdapter:
    return UnknownAdapter(
        f"The plan {plan_id[:PLAN_ID_CHARS]!r} is not known.",
        code="plan_not_found",
        remedy="Plans are remembered for some time only; leave plan_id out to have a new one made.",
        place="plan_id",
    )
