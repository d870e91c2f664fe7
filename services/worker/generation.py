"""The worker's one use case: a prompt and a plan in, events out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from hilora.errors import InvalidInput, StaleCatalogGeneration
from hilora.routing_plan import RoutingPlan
from services.worker.engine.engine import Engine
from services.worker.engine.events import EngineEvent, Failed, Finished
from services.worker.engine.request import EngineRequest
from services.worker.engine.sampling_params import SamplingParams
from services.worker.models.prompt_encoder import ChatTurn, PromptEncoder
from services.worker.ports import CatalogView

_CATALOG_PATIENCE_SECONDS = 2.0
"""How long a plan from a newer catalogue waits for the replica: the change is usually on its way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPrompt:
    """A prompt to be tokenised as it is."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatPrompt:
    """A conversation for the model's chat template."""

    turns: Sequence[ChatTurn]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenPrompt:
    """Token ids of the base model's tokenizer."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationRequest:
    """What one call asks for."""

    request_id: str
    prompt: TextPrompt | ChatPrompt | TokenPrompt
    sampling: SamplingParams
    plan: RoutingPlan


class Generation:
    """Runs requests on the engine.

    Args:
        engine: a started engine.
        encoder: of the engine's model.
        catalog: which adapters new requests may use.
    """

    def __init__(self, *, engine: Engine, encoder: PromptEncoder, catalog: CatalogView) -> None:
        self._engine = engine
        self._encoder = encoder
        self._catalog = catalog

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[EngineEvent]:
        """The events of one request, `Finished` last. Closing the iterator aborts the request.

        Raises:
            InvalidInput: the prompt, the sampling parameters or the plan are unusable.
            StaleCatalogGeneration: the plan is from a catalogue that this worker has not reached, or names an adapter
                that is gone (`adapter_gone`).
            HiloraError: whatever ended the request in the engine.
        """
        if not request.request_id:
            raise InvalidInput("A request needs an id.", code="missing_request_id", place="request_id")
        _check_plan(request.plan)
        await self._await_catalog(request.plan)
        token_ids = await asyncio.to_thread(self._encode, request.prompt)
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[EngineEvent] = asyncio.Queue()

        def deliver(event: EngineEvent) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        self._engine.submit(
            EngineRequest(
                request_id=request.request_id,
                prompt_token_ids=token_ids,
                sampling=request.sampling,
                plan=request.plan,
            ),
            deliver,
        )
        is_over = False
        try:
            while not is_over:
                event = await events.get()
                is_over = isinstance(event, Finished | Failed)
                if isinstance(event, Failed):
                    raise event.error
                yield event
        finally:
            if not is_over:
                self._engine.abort(request.request_id)

    def abort(self, request_id: str) -> bool:
        """End a request at the next step; False if it is not in flight."""
        return self._engine.abort(request_id)

    def _encode(self, prompt: TextPrompt | ChatPrompt | TokenPrompt) -> tuple[int, ...]:
        if isinstance(prompt, TextPrompt):
            return self._encoder.encode(prompt.text)
        if isinstance(prompt, ChatPrompt):
            return self._encoder.encode_chat(prompt.turns)
        return prompt.token_ids

    async def _await_catalog(self, plan: RoutingPlan) -> None:
        if plan.is_base_only:
            return
        is_reached = await self._catalog.wait_for_generation(
            plan.catalog_generation, timeout_seconds=_CATALOG_PATIENCE_SECONDS
        )
        if not is_reached:
            raise StaleCatalogGeneration(
                f"The plan is from catalogue generation {plan.catalog_generation}; this worker is at "
                f"{self._catalog.catalog_generation}.",
                remedy="Use another worker, or try again once this one has caught up.",
            )
        for budget in plan.budgets:
            if budget.num_rocs > 0 and not self._catalog.has_adapter(budget.adapter_id):
                raise StaleCatalogGeneration(
                    f"{budget.adapter_id} is not in the catalogue (any more).",
                    code="adapter_gone",
                    remedy="Route the request again.",
                    place=budget.adapter_name,
                )


def _check_plan(plan: RoutingPlan) -> None:
    """Refuse numbers that would turn ROCs off in silence, or turn their order around."""
    if not (math.isfinite(plan.gate.eta) and plan.gate.eta > 0):
        raise _invalid_plan(f"eta is {plan.gate.eta}; it must be finite and above 0.", "plan.gate.eta")
    for budget in plan.budgets:
        if not (math.isfinite(budget.weight) and budget.weight >= 0):
            raise _invalid_plan(
                f"The weight of {budget.adapter_id} is {budget.weight}; it must be finite and at least 0.",
                "plan.budgets.weight",
            )
    adapter_ids = [budget.adapter_id for budget in plan.budgets]
    if len(set(adapter_ids)) < len(adapter_ids):
        raise _invalid_plan("An adapter has two budgets in one plan.", "plan.budgets.adapter_id")


def _invalid_plan(message: str, place: str) -> InvalidInput:
    return InvalidInput(message, code="invalid_plan", remedy="Correct the plan's sender.", place=place)
