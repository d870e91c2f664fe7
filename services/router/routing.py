"""Decide which adapters answer a prompt, and with how many of their rank-one components."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hilora.access import Requester
from hilora.character_grams import gram_ids
from hilora.errors import InvalidInput
from hilora.routing_explanation import base_decision, explicit_decision
from hilora.routing_plan import RoutingDecision
from hilora.sequence_routing import SequenceRouter
from hilora.strategies import RoutingQuestion
from hilora.topic_watch import DEFAULT_RULES, TopicRules
from services.router.answer import RouteResult, SessionStanding, SessionVerdict
from services.router.catalog import CatalogView
from services.router.composition import composed_decision
from services.router.decision_cache import DecisionCache
from services.router.low_confidence import with_policy
from services.router.models import ModelDirectory
from services.router.plan_record import PlanRecord
from services.router.plans import Plans
from services.router.ports import Catalog, TextEmbedder
from services.router.request import Prompt
from services.router.routed_text import routed_text
from services.router.routing_options import RoutingOptions
from services.router.routing_rules import (
    RoutingDefaults,
    RoutingRules,
    check_single_choice,
    names_strategy,
    rules_for,
)
from services.router.session_plan import judge
from services.router.sessions import Sessions, SessionVisit
from services.router.text_key import text_key

_COMPUTED_AT_ONCE = 1000
"""Adapters among which a decision takes a fraction of a millisecond."""
_T = TypeVar("_T")


@dataclass(slots=True)
class _Times:
    """Seconds spent."""

    encode: float = 0.0
    decide: float = 0.0


class RouteText:
    """The use case behind `POST /v1/route`, and the first half of every completion. It changes no session.

    Args:
        catalog: the registered adapters and the model fitted to them.
        embedder: places a text among them.
        models: what a `model` value means.
        defaults: what holds where a request does not say.
        plans: remembers plans by their ids.
        sessions: knows which plan a conversation has.
        topic_rules: when a session's topic has moved, and its plan ends.
        decisions: remembers what was decided on texts that come again.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        embedder: TextEmbedder,
        models: ModelDirectory,
        defaults: RoutingDefaults,
        plans: Plans,
        sessions: Sessions,
        topic_rules: TopicRules = DEFAULT_RULES,
        decisions: DecisionCache | None = None,
    ) -> None:
        self._catalog = catalog
        self._embedder = embedder
        self._models = models
        self._defaults = defaults
        self._plans = plans
        self._sessions = sessions
        self._topic_rules = topic_rules
        self._decisions = DecisionCache(max_entries=0) if decisions is None else decisions

    async def route(self, prompt: Prompt | str, options: RoutingOptions, *, num_runners_up: int = 5) -> RouteResult:
        """Decide for one prompt.

        Args:
            prompt: what is to be answered, or a text alone.
            options: the client's wishes.
            num_runners_up: adapters that were not chosen but are reported.

        Raises:
            UnknownAdapter: `model_not_found`, `unknown_strategy`, `plan_not_found`.
            InvalidInput: `contradicting_options`, `excluded_model`, what `composed_decision` finds, or what the
                strategy lacks.
            LowConfidence: no adapter explains the text, and the request wants to be refused then.
            Conflict: `plan_gone`.
            RegistryUnavailable: before the first snapshot of the catalogue.
            Unavailable: `encoder_loading`, `encoder_failed`, `encoder_timeout`.
        """
        check_single_choice(options)
        requester = self._models.requester(options)
        encoder_id = self._embedder.encoder_id or ""
        times = _Times()
        session: SessionStanding | None = None
        strategy: str | None = None
        record: PlanRecord | None = None
        if options.plan_id is not None:
            view = self._catalog.view()
            record, decision = await self._plans.recall(
                options.plan_id, view=view, requester=requester, exclude=options.exclude_adapters
            )
            await self._plans.keep(record)
        elif options.adapters or not names_strategy(options.model):
            started = time.perf_counter()
            decision = self._explicit(options, self._catalog.view(), requester)
            times.decide = time.perf_counter() - started
        else:
            rules = rules_for(options, self._defaults)
            strategy = rules.strategy.name
            decision, session = await self._chosen(
                prompt, options, rules, requester=requester, num_runners_up=num_runners_up, times=times
            )
            record = session.after.kept if session is not None else None
        if record is None:
            record = await self._plans.remember(decision, strategy=strategy, tenant=options.tenant)
        return RouteResult(
            decision=decision,
            # The one the choice was made from: the names may be a refit ahead of the fitted model.
            catalog_generation=decision.plan.catalog_generation,
            encoder_id=encoder_id or self._embedder.encoder_id or "",
            encode_seconds=times.encode,
            decide_seconds=times.decide,
            strategy=strategy,
            plan_id=record.plan_id,
            session=session,
        )

    def _explicit(self, options: RoutingOptions, view: CatalogView, requester: Requester) -> RoutingDecision:
        if options.adapters:
            return composed_decision(options, models=self._models, view=view, requester=requester)
        if self._models.is_base(options.model):
            return base_decision(catalog_generation=view.catalog_generation)
        adapter = self._models.adapter(options.model, view, requester)
        if adapter.adapter_name in options.exclude_adapters:
            raise InvalidInput(
                f"The adapter {adapter.adapter_name!r} is both named as the model and excluded.",
                code="excluded_model",
                remedy="Drop it from exclude_adapters, or use model 'auto'.",
                place="exclude_adapters",
            )
        return explicit_decision(
            adapter_id=adapter.adapter_id,
            adapter_name=adapter.adapter_name,
            lora_rank=adapter.lora_rank,
            catalog_generation=view.catalog_generation,
        )

    async def _chosen(
        self,
        prompt: Prompt | str,
        options: RoutingOptions,
        rules: RoutingRules,
        *,
        requester: Requester,
        num_runners_up: int,
        times: _Times,
    ) -> tuple[RoutingDecision, SessionStanding | None]:
        """A strategy's decision, or the plan that the session had."""
        self._catalog.view()  # without a catalogue nothing is worth an embedding
        visit: SessionVisit | None = None
        z_E: NDArray[np.float32] | None = None
        text: str | None = None
        if rules.strategy.reads_text:
            visit = await self._sessions.find(prompt, options)
            started = time.perf_counter()
            text = self._text_of(prompt, options)
            z_E = await self._embedder.embed(text)
            times.encode = time.perf_counter() - started
        # The newest picture: an adapter may have gone while the text was being embedded.
        view = self._catalog.view()
        started = time.perf_counter()
        closed = view.closed_to(requester, tags=options.tags)
        exclude = closed | options.exclude_adapters if options.exclude_adapters else closed

        def question() -> RoutingQuestion:
            return RoutingQuestion(
                z_E=z_E,
                settings=rules.settings,
                request_seed=options.seed,
                exclude=exclude,
                num_runners_up=num_runners_up,
                own_adapter=options.own_adapter,
                gate_ids=self._defaults.gate_ids,
                learned_weights=self._defaults.learned_weights,
                grams=gram_ids(text) if text is not None and view.router.counts_grams else None,
                text=text,
            )

        verdict, reason = SessionVerdict.NEW, "The session begins."
        if visit is not None and visit.before is not None and z_E is not None:
            judge_session = partial(judge, visit, visit.before, view=view, question=question(), rules=self._topic_rules)
            judged = await _computed(judge_session, view.router)
            verdict, reason = judged.verdict, judged.reason
            if judged.decision is not None:
                kept = visit.before.kept
                await self._plans.keep(kept)
                times.decide = time.perf_counter() - started
                return judged.decision, visit.standing(verdict, reason, kept)
        if not rules.strategy.reads_text or view.can_choose(requester, tags=options.tags):
            # All that the answer depends on: gates and learned factors stay as they are while the process lives.
            key = (
                text and text_key(text),
                rules.strategy.name,
                rules.settings,
                options.seed,
                exclude,
                num_runners_up,
                options.own_adapter,
            )
            remembered = self._decisions.get(view.router, key)
            decision = remembered or await _computed(
                partial(rules.strategy.decide, view.router, question()), view.router
            )
            if remembered is None:
                self._decisions.put(view.router, key, decision)
        else:
            decision = _nobody(view, rules, has_tags=bool(options.tags))
        decision = with_policy(decision, options.low_confidence or self._defaults.low_confidence)
        times.decide = time.perf_counter() - started
        if visit is None:
            return decision, None
        made = await self._plans.remember(decision, strategy=rules.strategy.name, tenant=options.tenant)
        return decision, visit.standing(verdict, reason, made)

    def _text_of(self, prompt: Prompt | str, options: RoutingOptions) -> str:
        return routed_text(
            prompt,
            part=options.routed_part or self._defaults.routed_part,
            num_turns=self._defaults.routed_turns,
            max_chars=self._defaults.max_routed_chars,
        )


async def _computed(compute: Callable[[], _T], router: SequenceRouter) -> _T:
    """What is computed over a pool: here if it is small, or the way to a thread and back would take longer."""
    if router.num_adapters <= _COMPUTED_AT_ONCE:
        return compute()
    return await asyncio.to_thread(compute)


def _nobody(view: CatalogView, rules: RoutingRules, *, has_tags: bool) -> RoutingDecision:
    # The words must not tell a pool without adapters from one whose adapters are hidden.
    what = "No adapter bears these tags" if has_tags else "No adapter is registered"
    return base_decision(
        catalog_generation=view.router_generation,
        mode=rules.settings.mode,
        reason=f"{what}: the base model answers alone.",
        is_out_of_distribution=True,
    )
