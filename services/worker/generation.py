"""The worker's one use case: a prompt and a plan in, events out.

A call that asks for `n` answers becomes `n` requests to the engine; the engine itself knows only single answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from hilora.errors import Conflict, InvalidInput, StaleCatalogGeneration
from hilora.routing_plan import PreparationMethod, RoutingPlan
from services.worker.engine.engine import Engine
from services.worker.engine.output.events import EngineEvent, Failed, Finished, Started, TextDelta
from services.worker.engine.sampling.grammar import GrammarCompiler, TokenMatcher
from services.worker.engine.sampling.logprobs import PositionLogprobs, TokenLogprob
from services.worker.engine.sampling.sampling_params import SamplingParams
from services.worker.engine.scheduling.request import EngineRequest
from services.worker.models.chat_turns import ChatTurn
from services.worker.models.prompt_encoder import PromptEncoder
from services.worker.models.token_vocabulary import TokenVocabulary
from services.worker.ports import CatalogView
from services.worker.preparation import PlanPreparer

_CATALOG_PATIENCE_SECONDS = 2.0
"""How long a plan from a newer catalogue waits for the replica: the change is usually on its way."""
_GRAMMAR_PATIENCE_SECONDS = 30.0
"""How long a request waits for its grammar: the first one of a process also waits for its vocabulary to be read."""
_MAX_SEED = 2**64 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPrompt:
    """A prompt to be tokenised as it is."""

    text: str
    adds_special_tokens: bool = True
    """Whether the special tokens come along that the tokenizer adds by itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatPrompt:
    """A conversation for the model's chat template."""

    turns: Sequence[ChatTurn]
    tools: str = ""
    """What the model may call: a JSON list of OpenAI's tool objects; empty for nothing."""
    continues_final_message: bool = False
    """Whether the last turn is to be continued instead of answered."""


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
    priority: int = 0
    """Lower runs first."""
    explains_gating: bool = False
    """Whether each answer's end tells which ROCs acted."""


class Generation:
    """Runs requests on the engine.

    Args:
        engine: a started engine.
        encoder: of the engine's model.
        vocabulary: of the same model.
        compiler: for the same vocabulary.
        catalog: which adapters new requests may use.
        preparer: does what plans want done with their adapters first.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        encoder: PromptEncoder,
        vocabulary: TokenVocabulary,
        compiler: GrammarCompiler,
        catalog: CatalogView,
        preparer: PlanPreparer,
    ) -> None:
        self._engine = engine
        self._encoder = encoder
        self._vocabulary = vocabulary
        self._compiler = compiler
        # One thread of its own: slow grammars wait for one another, and not even a thousand keep prompts from encoding.
        self._compiler_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar")
        self._catalog = catalog
        self._preparer = preparer
        self._choice_ids: dict[str, list[str]] = {}
        """Engine requests of each call in flight."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[EngineEvent]:
        """The events of one request: one `Started`, the deltas of its choices, one `Finished` for each choice. Closing
        the iterator aborts the request. If one choice fails, the others are aborted.

        Raises:
            InvalidInput: the prompt, the sampling parameters, the grammar or the plan are unusable.
            Conflict: `duplicate_request_id`.
            StaleCatalogGeneration: the plan is from a catalogue that this worker has not reached, or names an adapter
                that is gone (`adapter_gone`).
            HiloraError: whatever ended the request in the engine.
        """
        if not request.request_id:
            raise InvalidInput("A request needs an id.", code="missing_request_id", place="request_id")
        _check_plan(request.plan)
        await self._await_catalog(request.plan)
        token_ids = await asyncio.to_thread(self._encode, request.prompt)
        plan = await self._preparer.prepared(request.plan, token_ids)
        if plan.gate.gate_id is not None:
            await asyncio.to_thread(self._engine.load_gate, plan)
        grammars = await self._compile(request.sampling)
        if request.request_id in self._choice_ids:
            raise Conflict(
                f"A request {request.request_id} is in flight already.",
                code="duplicate_request_id",
                remedy="Choose an id of its own for each request.",
                place="request_id",
            )
        choices = [
            EngineRequest(
                request_id=_choice_id(request, choice_idx),
                prompt_token_ids=token_ids,
                sampling=_choice_sampling(request.sampling, choice_idx),
                plan=plan,
                priority=request.priority,
                grammar=grammar,
                explains_gating=request.explains_gating,
            )
            for choice_idx, grammar in enumerate(grammars)
        ]
        async with contextlib.aclosing(self._run(request.request_id, choices)) as events:
            async for event in events:
                yield _as_asked(await self._with_token_bytes(event), request.plan)

    async def tokenize(self, prompt: TextPrompt | ChatPrompt) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """The tokens that a prompt would become: their ids, and how the tokenizer spells them.

        Raises:
            InvalidInput: see `PromptEncoder.encode_chat`.
        """

        def both() -> tuple[tuple[int, ...], tuple[str, ...]]:
            token_ids = self._encode(prompt)
            return token_ids, self._encoder.spell(token_ids)

        return await asyncio.to_thread(both)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones included. Raises InvalidInput (`invalid_token_id`)."""
        return await asyncio.to_thread(self._encoder.decode, token_ids)

    def abort(self, request_id: str) -> bool:
        """End a request, all its choices, at the next step; False if it is not in flight."""
        was_running = [self._engine.abort(choice_id) for choice_id in self._choice_ids.get(request_id, [request_id])]
        return any(was_running)

    async def _run(self, request_id: str, choices: Sequence[EngineRequest]) -> AsyncGenerator[EngineEvent]:
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[EngineEvent] = asyncio.Queue()
        running: dict[int, EngineRequest] = {}
        is_started = False
        choice_ids = [choice.request_id for choice in choices]
        self._choice_ids[request_id] = choice_ids
        try:
            for choice_idx, choice in enumerate(choices):

                def deliver(event: EngineEvent, choice_idx: int = choice_idx) -> None:
                    loop.call_soon_threadsafe(events.put_nowait, _of_choice(event, choice_idx))

                self._engine.submit(choice, deliver)
                running[choice_idx] = choice
            while running:
                event = await events.get()
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Started):
                    if is_started:
                        continue
                    is_started = True
                if isinstance(event, Finished):
                    del running[event.choice_idx]
                    if not running:
                        # Before the event: whoever hears it may use the id again at once.
                        del self._choice_ids[request_id]
                yield event
        finally:
            for choice in running.values():
                self._engine.abort(choice.request_id)
            if self._choice_ids.get(request_id) is choice_ids:
                del self._choice_ids[request_id]

    async def _compile(self, sampling: SamplingParams) -> list[TokenMatcher | None]:
        """A matcher for each choice; None where there is no grammar."""
        grammar = sampling.grammar
        if grammar is None:
            return [None] * sampling.n
        loop = asyncio.get_running_loop()

        def compile_all() -> list[TokenMatcher | None]:
            return [self._compiler.compile(grammar) for _ in range(sampling.n)]

        try:
            compiling = loop.run_in_executor(self._compiler_thread, compile_all)
            return await asyncio.wait_for(compiling, _GRAMMAR_PATIENCE_SECONDS)
        except TimeoutError as error:
            raise InvalidInput(
                f"The grammar was not ready within {_GRAMMAR_PATIENCE_SECONDS:g} seconds.",
                code="grammar_too_slow",
                remedy="Simplify it, or try again if others send slow ones.",
                place="grammar",
            ) from error

    async def _with_token_bytes(self, event: EngineEvent) -> EngineEvent:
        """Log-probabilities as callers read them; the engine's own thread has no time for that."""
        if not isinstance(event, TextDelta) or not (event.logprobs or event.prompt_logprobs):
            return event
        prompt_logprobs = event.prompt_logprobs
        if prompt_logprobs:
            # A long prompt has a hundred thousand of them.
            prompt_logprobs = await asyncio.to_thread(self._readable, prompt_logprobs)
        return replace(event, logprobs=self._readable(event.logprobs), prompt_logprobs=prompt_logprobs)

    def _readable(self, positions: Sequence[PositionLogprobs]) -> tuple[PositionLogprobs, ...]:
        def named(token: TokenLogprob) -> TokenLogprob:
            return replace(token, token_bytes=self._vocabulary.bytes_of(token.token_id))

        return tuple(
            PositionLogprobs(chosen=named(position.chosen), top=tuple(named(token) for token in position.top))
            for position in positions
        )

    def _encode(self, prompt: TextPrompt | ChatPrompt | TokenPrompt) -> tuple[int, ...]:
        if isinstance(prompt, TextPrompt):
            return self._encoder.encode(prompt.text, adds_special_tokens=prompt.adds_special_tokens)
        if isinstance(prompt, ChatPrompt):
            return self._encoder.encode_chat(
                prompt.turns, tools=prompt.tools, continues_final_message=prompt.continues_final_message
            )
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


def _choice_id(request: GenerationRequest, choice_idx: int) -> str:
    return request.request_id if request.sampling.n == 1 else f"{request.request_id}-{choice_idx}"


def _choice_sampling(sampling: SamplingParams, choice_idx: int) -> SamplingParams:
    """One answer's parameters: its own seed, and the prompt's log-probabilities with the first answer only."""
    seed = None if sampling.seed is None else (sampling.seed + choice_idx) & _MAX_SEED
    prompt_logprobs = sampling.prompt_logprobs if choice_idx == 0 else None
    return replace(sampling, n=1, best_of=None, seed=seed, prompt_logprobs=prompt_logprobs)


def _of_choice(event: EngineEvent, choice_idx: int) -> EngineEvent:
    is_told = choice_idx > 0 and isinstance(event, TextDelta | Finished)
    return replace(event, choice_idx=choice_idx) if is_told else event


def _as_asked(event: EngineEvent, plan: RoutingPlan) -> EngineEvent:
    """What used adapters that were merged is told of these: nobody outside knows the merged one."""
    is_merged = plan.preparation is not None and plan.preparation.method.is_merge
    if not is_merged or not isinstance(event, Finished) or not event.budgets_used:
        return event
    return replace(event, budgets_used=plan.budgets)


def _check_plan(plan: RoutingPlan) -> None:
    """Refuse numbers that would turn ROCs off in silence."""
    if not (math.isfinite(plan.gate.eta) and plan.gate.eta > 0):
        raise _invalid_plan(f"eta is {plan.gate.eta}; it must be finite and above 0.", "plan.gate.eta")
    for budget in plan.budgets:
        for field in ("weight", "reading_weight"):
            factor = getattr(budget, field)
            if factor is not None and not math.isfinite(factor):
                raise _invalid_plan(
                    f"The {field} of {budget.adapter_id} is {factor}; it must be finite.", f"plan.budgets.{field}"
                )
        if plan.preparation is not None and plan.preparation.method is PreparationMethod.LEGO and budget.weight < 0:
            raise _invalid_plan(
                f"The weight of {budget.adapter_id} is {budget.weight}; clusters take none below 0.",
                "plan.budgets.weight",
            )
    adapter_ids = [budget.adapter_id for budget in plan.budgets]
    if len(set(adapter_ids)) < len(adapter_ids):
        raise _invalid_plan("An adapter has two budgets in one plan.", "plan.budgets.adapter_id")


def _invalid_plan(message: str, place: str) -> InvalidInput:
    return InvalidInput(message, code="invalid_plan", remedy="Correct the plan's sender.", place=place)
