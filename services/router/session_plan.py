"""Whether a session's plan is kept for another turn, and what is then reported of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hilora.fitted_pool import FittedPool
from hilora.routing_explanation import explained_decision
from hilora.routing_plan import RoutingDecision
from hilora.strategies import RoutingQuestion
from hilora.topic_watch import TopicRules, TopicVerdict, watch_topic
from services.router.answer import SessionVerdict
from services.router.catalog import CatalogView
from services.router.plan_record import SessionRecord
from services.router.sessions import SessionVisit


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedPlan:
    """What became of a session's plan."""

    verdict: SessionVerdict
    reason: str
    """One sentence for a person."""
    decision: RoutingDecision | None = None
    """The plan once more, beside what the text scores now under the calibrated model; None unless it is kept."""


def judge(
    visit: SessionVisit, before: SessionRecord, *, view: CatalogView, question: RoutingQuestion, rules: TopicRules
) -> JudgedPlan:
    """Look whether a session's plan is still the right one.

    Only what could be chosen now is kept: the adapters' current versions, as far as they may be chosen for the request.

    Args:
        visit: the request's session.
        before: where it stood.
        view: the catalogue now.
        question: the new text, with its embedding, and who must not be chosen.
        rules: when a topic has moved.
    """
    if visit.options_digest != before.options_digest:
        return JudgedPlan(
            verdict=SessionVerdict.OPTIONS_CHANGED, reason="The request wants adapters chosen in another way."
        )
    pool, places_K = view.router.pool, _places(before, view, question.exclude)
    if pool is None or places_K is None:
        return JudgedPlan(
            verdict=SessionVerdict.ADAPTER_GONE,
            reason="An adapter version of the session's plan cannot be chosen any more.",
        )
    assert question.z_E is not None, "who asks for a session's plan has a text"
    topic = watch_topic(
        pool, question.z_E, kept_places=places_K, excluded=pool.excluded_places(question.exclude), rules=rules
    )
    if topic.has_moved:
        return JudgedPlan(
            verdict=SessionVerdict.TOPIC_MOVED,
            reason=(
                f"The topic has moved: {topic.challenger} explains the text ({topic.challenger_posterior:.0%}), the "
                f"session's adapters do not ({topic.kept_posterior:.0%})."
            ),
        )
    reason = f"The session's plan is kept: {_why_kept(topic)}."
    decision = _once_more(before, view, pool, places_K, question, reason)
    return JudgedPlan(verdict=SessionVerdict.KEPT, reason=reason, decision=decision)


def _places(before: SessionRecord, view: CatalogView, closed: frozenset[str]) -> NDArray[np.intp] | None:
    """Where the plan's adapters stand in the fit; None if one of them cannot be chosen."""
    pool = view.router.pool
    found: list[int] = []
    for budget in before.kept.plan.budgets:
        adapter = view.adapters.get(budget.adapter_name)
        place = None if pool is None else pool.place_of(budget.adapter_id, budget.adapter_name)
        is_current = adapter is not None and adapter.adapter_id == budget.adapter_id
        if place is None or not is_current or budget.adapter_name in closed:
            return None
        found.append(place)
    return np.array(sorted(found), dtype=np.intp)


def _why_kept(topic: TopicVerdict) -> str:
    if topic.challenger is None or topic.kept_posterior >= topic.challenger_posterior:
        return "its adapters are the likeliest"
    return "the text does not tell enough for another one"


def _once_more(
    before: SessionRecord,
    view: CatalogView,
    pool: FittedPool,
    places_K: NDArray[np.intp],
    question: RoutingQuestion,
    reason: str,
) -> RoutingDecision:
    assert question.z_E is not None, "who asks for a session's plan has a text"
    scores = pool.score_nearest(
        pool.checked(question.z_E),
        num_results=len(places_K) + max(question.num_runners_up, 1),
        excluded=pool.excluded_places(question.exclude),
        grams=question.counted_grams,
        also=places_K,
    )
    decision = explained_decision(
        # Stamped with the catalogue that still has all of it.
        replace(before.kept.plan, catalog_generation=view.catalog_generation),
        scores=scores,
        identity_of=lambda place: (pool.profiles[place].adapter_id, pool.profiles[place].adapter_name),
        mode=before.kept.mode,
        is_unknown=bool((scores.ratios_C < 0.0).all()),
        num_runners_up=question.num_runners_up,
    )
    return replace(decision, reason=reason)
