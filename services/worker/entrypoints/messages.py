"""Between the wire's messages and the worker's own values. The only place that knows both."""

from __future__ import annotations

from hilora.adapter import RocBasis
from hilora.errors import InvalidInput
from hilora.routing_plan import (
    GateParameters,
    GateRule,
    GateScope,
    PlanPreparation,
    PreparationMethod,
    RocBudget,
    RocScore,
    RoutingPlan,
)
from hilora_rpc.v1 import routing_pb2, worker_pb2
from services.worker.engine.output.events import EngineEvent, Failed, Finished, FinishReason, Started, TextDelta
from services.worker.engine.sampling.logprobs import PositionLogprobs, TokenLogprob
from services.worker.engine.sampling.sampling_params import Grammar, GrammarKind, SamplingParams
from services.worker.engine.stats import EngineStats
from services.worker.generation import ChatPrompt, GenerationRequest, TextPrompt, TokenPrompt
from services.worker.lora.gating.gating_counts import ModuleGating
from services.worker.models.chat_turns import ChatTurn, TurnToolCall
from services.worker.ports import ComponentTierStats

_SCORES = {
    routing_pb2.RocScore.ROC_SCORE_ACTIVATION: RocScore.ACTIVATION,
    routing_pb2.RocScore.ROC_SCORE_CONTRIBUTION: RocScore.CONTRIBUTION,
}
_SCOPES = {
    routing_pb2.GateScope.GATE_SCOPE_PER_ADAPTER: GateScope.PER_ADAPTER,
    routing_pb2.GateScope.GATE_SCOPE_GLOBAL: GateScope.GLOBAL,
}
_BASES = {
    routing_pb2.RocBasis.ROC_BASIS_SVD: RocBasis.SVD,
    routing_pb2.RocBasis.ROC_BASIS_TRAINED: RocBasis.TRAINED,
}
_RULES = {
    routing_pb2.GateRule.GATE_RULE_ROCS: GateRule.ROCS,
    routing_pb2.GateRule.GATE_RULE_ARROW: GateRule.ARROW,
    routing_pb2.GateRule.GATE_RULE_SPECTR: GateRule.SPECTR,
    routing_pb2.GateRule.GATE_RULE_SEQR: GateRule.SEQR,
    routing_pb2.GateRule.GATE_RULE_PHATGOOSE: GateRule.PHATGOOSE,
    routing_pb2.GateRule.GATE_RULE_RAMOLE: GateRule.RAMOLE,
    routing_pb2.GateRule.GATE_RULE_SMORA: GateRule.SMORA,
}
_METHODS = {
    routing_pb2.PreparationMethod.PREPARATION_METHOD_FUSION: PreparationMethod.FUSION,
    routing_pb2.PreparationMethod.PREPARATION_METHOD_LEGO: PreparationMethod.LEGO,
    routing_pb2.PreparationMethod.PREPARATION_METHOD_LOGO: PreparationMethod.LOGO,
}
_ROLES = {
    worker_pb2.ChatRole.CHAT_ROLE_SYSTEM: "system",
    worker_pb2.ChatRole.CHAT_ROLE_USER: "user",
    worker_pb2.ChatRole.CHAT_ROLE_ASSISTANT: "assistant",
    worker_pb2.ChatRole.CHAT_ROLE_TOOL: "tool",
}
_FINISH_REASONS = {
    FinishReason.STOP: worker_pb2.FinishReason.FINISH_REASON_STOP,
    FinishReason.LENGTH: worker_pb2.FinishReason.FINISH_REASON_LENGTH,
    FinishReason.ABORT: worker_pb2.FinishReason.FINISH_REASON_ABORT,
}
_OPTIONAL_SAMPLING_FIELDS = (
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "n",
    "best_of",
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "logprobs",
    "prompt_logprobs",
)


def generation_request(message: worker_pb2.GenerateRequest) -> GenerationRequest:
    """What a Generate call asks for.

    Raises:
        InvalidInput: no input, an unknown enum value, or a plan that contradicts itself.
    """
    return GenerationRequest(
        request_id=message.request_id,
        prompt=_prompt(message),
        sampling=_sampling(message.sampling),
        plan=_plan(message.plan),
        priority=message.priority,
        explains_gating=message.explains_gating,
    )


def prompt_to_tokenize(message: worker_pb2.TokenizeRequest) -> TextPrompt | ChatPrompt:
    """What a Tokenize call asks about.

    Raises:
        InvalidInput: no input, or an unknown role.
    """
    kind = message.WhichOneof("input")
    if kind == "prompt":
        return TextPrompt(text=message.prompt, adds_special_tokens=not message.omits_special_tokens)
    if kind == "chat":
        return _chat(message.chat)
    raise _no_input("Set prompt or chat.")


def generate_event(event: EngineEvent) -> worker_pb2.GenerateEvent:
    """An engine's event as a message; `Failed` travels as a status instead."""
    assert not isinstance(event, Failed)
    if isinstance(event, Started):
        return worker_pb2.GenerateEvent(started=worker_pb2.Started(num_prompt_tokens=event.num_prompt_tokens))
    if isinstance(event, TextDelta):
        return worker_pb2.GenerateEvent(delta=_delta(event))
    return worker_pb2.GenerateEvent(finished=_finished(event))


def stats_response(
    stats: EngineStats,
    *,
    host_tier: ComponentTierStats,
    disk_tier: ComponentTierStats | None,
    worker_id: str,
    base_model: str,
    catalog_generation: int,
) -> worker_pb2.StatsResponse:
    """The engine's load, and what the tiers below its device hold, as a message."""
    return worker_pb2.StatsResponse(
        worker_id=worker_id,
        base_model=base_model,
        catalog_generation=catalog_generation,
        num_running=stats.num_running,
        num_waiting=stats.num_waiting,
        max_num_seqs=stats.max_num_seqs,
        max_model_len=stats.max_model_len,
        kv_cache_usage=stats.kv_cache_usage,
        resident_adapter_ids=stats.resident_adapter_ids,
        roc_pool_used_bytes=stats.roc_pool_used_bytes,
        roc_pool_capacity_bytes=stats.roc_pool_capacity_bytes,
        is_draining=stats.is_draining,
        num_prompt_tokens_total=stats.counters.num_prompt_tokens,
        num_generation_tokens_total=stats.counters.num_generation_tokens,
        num_requests_finished_total=stats.counters.num_requests_finished,
        num_requests_failed_total=stats.counters.num_requests_failed,
        num_requests_aborted_total=stats.counters.num_requests_aborted,
        is_stuck=stats.is_stuck,
        num_steps_total=stats.counters.num_steps,
        num_preemptions_total=stats.counters.num_preemptions,
        num_queue_timeouts_total=stats.counters.num_queue_timeouts,
        num_cached_tokens_total=stats.counters.num_cached_tokens,
        queue_seconds_total=stats.counters.queue_seconds,
        roc_pool_reserved_bytes=stats.roc_pool.reserved_bytes,
        roc_pool_pinned_bytes=stats.roc_pool.pinned_bytes,
        num_roc_pool_hits_total=stats.roc_pool.num_hits,
        num_roc_pool_misses_total=stats.roc_pool.num_misses,
        num_roc_pool_evictions_total=stats.roc_pool.num_evictions,
        host_tier=_tier(host_tier),
        disk_tier=None if disk_tier is None else _tier(disk_tier),
        is_device_lost=stats.is_device_lost,
    )


def _tier(stats: ComponentTierStats) -> worker_pb2.ComponentTier:
    return worker_pb2.ComponentTier(
        used_bytes=stats.used_bytes,
        capacity_bytes=stats.capacity_bytes,
        num_adapters=stats.num_adapters,
        num_hits_total=stats.num_hits,
        num_misses_total=stats.num_misses,
        num_evictions_total=stats.num_evictions,
        num_damaged_total=stats.num_damaged,
    )


def _prompt(message: worker_pb2.GenerateRequest) -> TextPrompt | ChatPrompt | TokenPrompt:
    kind = message.WhichOneof("input")
    if kind == "prompt":
        return TextPrompt(text=message.prompt)
    if kind == "tokens":
        return TokenPrompt(token_ids=tuple(message.tokens.token_ids))
    if kind == "chat":
        return _chat(message.chat)
    raise _no_input("Set prompt, chat or tokens.")


def _chat(message: worker_pb2.ChatInput) -> ChatPrompt:
    return ChatPrompt(
        turns=tuple(_turn(turn) for turn in message.messages),
        tools=message.tools,
        continues_final_message=message.continues_final_message,
    )


def _no_input(remedy: str) -> InvalidInput:
    return InvalidInput("The request has no input.", code="missing_input", remedy=remedy, place="input")


def _turn(message: worker_pb2.ChatMessage) -> ChatTurn:
    if message.role not in _ROLES:
        raise InvalidInput(
            f"A message has the unknown role {message.role}.",
            code="invalid_chat",
            remedy="Use system, user, assistant or tool.",
            place="messages.role",
        )
    return ChatTurn(
        role=_ROLES[message.role],
        content=message.content,
        tool_calls=tuple(
            TurnToolCall(call_id=call.id, name=call.name, arguments=call.arguments) for call in message.tool_calls
        ),
        tool_call_id=message.tool_call_id,
        name=message.name,
    )


def _sampling(message: worker_pb2.SamplingParams) -> SamplingParams:
    # Fields left out take the defaults of SamplingParams, which are those the wire documents.
    given = {name: getattr(message, name) for name in _OPTIONAL_SAMPLING_FIELDS if message.HasField(name)}
    return SamplingParams(
        **given,
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        logit_bias=dict(message.logit_bias),
        grammar=_grammar(message.grammar),
    )


def _grammar(message: worker_pb2.Grammar) -> Grammar | None:
    kind = message.WhichOneof("kind")
    if kind is None or (kind == "json_object" and not message.json_object):
        return None
    if kind == "json_object":
        return Grammar(kind=GrammarKind.JSON_OBJECT)
    if kind == "choice":
        return Grammar(kind=GrammarKind.CHOICE, choices=tuple(message.choice.texts))
    return Grammar(kind=GrammarKind(kind), text=message.json_schema or message.regex)


def _plan(message: routing_pb2.RoutingPlan) -> RoutingPlan:
    budgets = tuple(_budget(budget) for budget in message.budgets)
    gate = _gate(message.gate) if message.HasField("gate") else GateParameters()
    preparation = _preparation(message.preparation) if message.HasField("preparation") else None
    try:
        return RoutingPlan(
            budgets=budgets, gate=gate, catalog_generation=message.catalog_generation, preparation=preparation
        )
    except ValueError as error:
        raise _invalid_plan(f"The plan contradicts itself: {error}.", "plan") from error


def _preparation(message: routing_pb2.PlanPreparation) -> PlanPreparation:
    method = _METHODS.get(message.method)
    if method is None:
        raise _invalid_plan("The plan's preparation is not set, or unknown here.", "plan.preparation.method")
    try:
        return PlanPreparation(method=method, num_kept=message.num_kept)
    except ValueError as error:
        raise _invalid_plan(f"The preparation contradicts itself: {error}.", "plan.preparation") from error


def _budget(message: routing_pb2.RocBudget) -> RocBudget:
    try:
        return RocBudget(
            adapter_id=message.adapter_id,
            adapter_name=message.adapter_name,
            lora_rank=message.lora_rank,
            num_rocs=message.num_rocs,
            weight=message.weight,
            reading_weight=message.reading_weight if message.HasField("reading_weight") else None,
        )
    except ValueError as error:
        raise _invalid_plan(f"{message.adapter_id}: {error}", "plan.budgets.num_rocs") from error


def _gate(message: routing_pb2.GateParameters) -> GateParameters:
    if message.score not in _SCORES or message.scope not in _SCOPES or message.basis not in _BASES:
        raise _invalid_plan("The gate's score, scope or basis is not set, or unknown here.", "plan.gate")
    # Left out by senders that know no other rule.
    rule = GateRule.ROCS if not message.rule else _RULES.get(message.rule)
    if rule is None:
        raise _invalid_plan("The gate's rule is unknown here.", "plan.gate.rule")
    try:
        return GateParameters(
            score=_SCORES[message.score],
            scope=_SCOPES[message.scope],
            basis=_BASES[message.basis],
            eta=message.eta,
            rule=rule,
            top_k=message.top_k,
            temperature=message.temperature if message.HasField("temperature") else 1.0,
            gate_id=message.gate_id if message.HasField("gate_id") else None,
        )
    except ValueError as error:
        raise _invalid_plan(f"The gate contradicts itself: {error}.", "plan.gate") from error


def _invalid_plan(message: str, place: str) -> InvalidInput:
    return InvalidInput(message, code="invalid_plan", remedy="Correct the plan's sender.", place=place)


def _delta(event: TextDelta) -> worker_pb2.TextDelta:
    return worker_pb2.TextDelta(
        text=event.text,
        token_ids=event.token_ids,
        choice_idx=event.choice_idx,
        logprobs=[_position(position) for position in event.logprobs],
        prompt_logprobs=[_position(position) for position in event.prompt_logprobs],
    )


def _position(position: PositionLogprobs) -> worker_pb2.PositionLogprobs:
    return worker_pb2.PositionLogprobs(
        chosen=_logprob(position.chosen), top=[_logprob(token) for token in position.top]
    )


def _logprob(token: TokenLogprob) -> worker_pb2.TokenLogprob:
    return worker_pb2.TokenLogprob(token_id=token.token_id, logprob=token.logprob, token_bytes=token.token_bytes)


def _finished(event: Finished) -> worker_pb2.Finished:
    message = worker_pb2.Finished(
        finish_reason=_FINISH_REASONS[event.finish_reason],
        num_prompt_tokens=event.num_prompt_tokens,
        num_completion_tokens=event.num_completion_tokens,
        budgets_used=[
            routing_pb2.RocBudget(
                adapter_id=budget.adapter_id,
                adapter_name=budget.adapter_name,
                lora_rank=budget.lora_rank,
                num_rocs=budget.num_rocs,
                weight=budget.weight,
                reading_weight=budget.reading_weight,
            )
            for budget in event.budgets_used
        ],
        ttft_seconds=event.ttft_seconds,
        e2e_latency_seconds=event.e2e_latency_seconds,
        choice_idx=event.choice_idx,
        num_cached_tokens=event.num_cached_tokens,
        gating=[_module_gating(module) for module in event.gating],
        num_gated_tokens=event.num_gated_tokens,
    )
    if isinstance(event.stop_reason, str):
        message.stop_text = event.stop_reason
    elif event.stop_reason is not None:
        message.stop_token_id = event.stop_reason
    return message


def _module_gating(module: ModuleGating) -> worker_pb2.ModuleGating:
    return worker_pb2.ModuleGating(
        module_path=module.module_path,
        adapters=[
            worker_pb2.AdapterGating(adapter_id=adapter.adapter_id, num_tokens_fired=adapter.num_tokens_fired)
            for adapter in module.adapters
        ],
    )
