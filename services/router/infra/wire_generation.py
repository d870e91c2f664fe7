"""Requests and the events of their answers as protobuf messages and back. Decisions: `wire_decisions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hilora.errors import Unavailable
from hilora_rpc.v1 import worker_pb2
from services.router.answer import (
    AdapterGating,
    FinishReason,
    GenerationFinished,
    GenerationStarted,
    ModuleGating,
    PositionLogprobs,
    TextDelta,
    TokenizedPrompt,
    TokenLogprob,
    WorkerEvent,
)
from services.router.infra.wire_decisions import budget_from_wire, budget_to_wire, plan_to_wire
from services.router.request import (
    ChatMessage,
    ChatPrompt,
    ChatRole,
    Grammar,
    GrammarKind,
    Prompt,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
    ToolCall,
    WorkOrder,
)

_ROLES = {
    ChatRole.SYSTEM: worker_pb2.CHAT_ROLE_SYSTEM,
    ChatRole.USER: worker_pb2.CHAT_ROLE_USER,
    ChatRole.ASSISTANT: worker_pb2.CHAT_ROLE_ASSISTANT,
    ChatRole.TOOL: worker_pb2.CHAT_ROLE_TOOL,
}
_FINISH_REASONS = {
    worker_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    worker_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
}
_FINISH_REASONS_TO_WIRE = {value: key for key, value in _FINISH_REASONS.items()}
_OPTIONAL_SAMPLING = (
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
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "logprobs",
    "prompt_logprobs",
)
"""Fields that have one name here and there, and are None here where they are unset there."""

ROLES_FROM_WIRE = {value: key for key, value in _ROLES.items()}
"""Chat roles by their wire value, without UNSPECIFIED."""


def order_to_wire(order: WorkOrder) -> worker_pb2.GenerateRequest:
    """A work order as a worker's request."""
    request = order.request
    message = worker_pb2.GenerateRequest(
        request_id=request.request_id,
        sampling=sampling_to_wire(request.sampling),
        plan=plan_to_wire(order.plan),
        priority=request.priority,
        explains_gating=request.explains_gating,
    )
    match request.prompt:
        case TextPrompt(text=text):
            message.prompt = text
        case TokenPrompt(token_ids=token_ids):
            message.tokens.token_ids.extend(token_ids)
        case ChatPrompt() as chat:
            message.chat.CopyFrom(chat_to_wire(chat))
    return message


def chat_to_wire(chat: ChatPrompt) -> worker_pb2.ChatInput:
    """A conversation as a worker renders it."""
    return worker_pb2.ChatInput(
        messages=[
            worker_pb2.ChatMessage(
                role=_ROLES[turn.role],
                content=turn.content,
                tool_calls=[
                    worker_pb2.ToolCall(id=call.call_id, name=call.name, arguments=call.arguments)
                    for call in turn.tool_calls
                ],
                tool_call_id=turn.tool_call_id,
                name=turn.name,
            )
            for turn in chat.messages
        ],
        tools=chat.tools,
        continues_final_message=chat.continues_final_message,
    )


def message_from_wire(message: worker_pb2.ChatMessage) -> ChatMessage | None:
    """One turn; None if its role is not said."""
    role = ROLES_FROM_WIRE.get(message.role)
    if role is None:
        return None
    calls = [ToolCall(call_id=call.id, name=call.name, arguments=call.arguments) for call in message.tool_calls]
    return ChatMessage(
        role=role,
        content=message.content,
        tool_calls=tuple(calls),
        tool_call_id=message.tool_call_id,
        name=message.name,
    )


def tokenize_to_wire(prompt: Prompt, *, omits_special_tokens: bool) -> worker_pb2.TokenizeRequest:
    """The question for a prompt's tokens."""
    message = worker_pb2.TokenizeRequest(omits_special_tokens=omits_special_tokens)
    if isinstance(prompt, ChatPrompt):
        message.chat.CopyFrom(chat_to_wire(prompt))
    else:
        message.prompt = prompt.text
    return message


def tokenized_from_wire(message: worker_pb2.TokenizeResponse) -> TokenizedPrompt:
    """A prompt's tokens."""
    return TokenizedPrompt(
        token_ids=tuple(message.token_ids), tokens=tuple(message.tokens), max_model_len=message.max_model_len
    )


def tokenized_to_wire(tokenized: TokenizedPrompt) -> worker_pb2.TokenizeResponse:
    """A prompt's tokens, for clients of the router's own gRPC door."""
    return worker_pb2.TokenizeResponse(
        token_ids=tokenized.token_ids, tokens=tokenized.tokens, max_model_len=tokenized.max_model_len
    )


def sampling_to_wire(sampling: SamplingParams) -> worker_pb2.SamplingParams:
    """Sampling parameters; what is None stays unset."""
    given: dict[str, Any] = {name: getattr(sampling, name) for name in _OPTIONAL_SAMPLING}
    return worker_pb2.SamplingParams(
        **given,
        logit_bias=sampling.logit_bias,
        stop=sampling.stop,
        stop_token_ids=sampling.stop_token_ids,
        grammar=None if sampling.grammar is None else _grammar_to_wire(sampling.grammar),
    )


def _grammar_to_wire(grammar: Grammar) -> worker_pb2.Grammar:
    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            return worker_pb2.Grammar(json_schema=grammar.text)
        case GrammarKind.JSON_OBJECT:
            return worker_pb2.Grammar(json_object=True)
        case GrammarKind.REGEX:
            return worker_pb2.Grammar(regex=grammar.text)
        case GrammarKind.CHOICE:
            return worker_pb2.Grammar(choice=worker_pb2.ChoiceGrammar(texts=grammar.choices))


def sampling_from_wire(message: worker_pb2.SamplingParams) -> SamplingParams:
    """Sampling parameters; what is unset is None. The worker checks the ranges."""
    # The stubs list the names as literals.
    given: dict[str, Any] = {
        name: getattr(message, name)
        for name in _OPTIONAL_SAMPLING
        if message.HasField(name)  # pyright: ignore[reportArgumentType]
    }
    return SamplingParams(
        **given,
        logit_bias=dict(message.logit_bias),
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        grammar=_grammar_from_wire(message.grammar),
    )


def _grammar_from_wire(message: worker_pb2.Grammar) -> Grammar | None:
    match message.WhichOneof("kind"):
        case "json_schema":
            return Grammar(kind=GrammarKind.JSON_SCHEMA, text=message.json_schema)
        case "regex":
            return Grammar(kind=GrammarKind.REGEX, text=message.regex)
        case "choice":
            return Grammar(kind=GrammarKind.CHOICE, choices=tuple(message.choice.texts))
        case "json_object" if message.json_object:
            return Grammar(kind=GrammarKind.JSON_OBJECT)
        case _:
            return None


def event_from_wire(message: worker_pb2.GenerateEvent) -> WorkerEvent:
    """One event of a worker's stream.

    Raises:
        Unavailable: `generation_aborted`, where the worker gave a request up that nobody here cancelled.
    """
    match message.WhichOneof("event"):
        case "delta":
            return _delta_from_wire(message.delta)
        case "started":
            return GenerationStarted(num_prompt_tokens=message.started.num_prompt_tokens)
        case "finished":
            return _finished_from_wire(message.finished)
        case None:
            raise Unavailable(
                "A worker sent an event this router does not know.",
                code="incompatible_worker",
                remedy="Run router and workers at the same version.",
            )


def _delta_from_wire(delta: worker_pb2.TextDelta) -> TextDelta:
    return TextDelta(
        text=delta.text,
        token_ids=tuple(delta.token_ids),
        choice_idx=delta.choice_idx,
        logprobs=tuple(map(_position_from_wire, delta.logprobs)) if delta.logprobs else (),
        prompt_logprobs=tuple(map(_position_from_wire, delta.prompt_logprobs)) if delta.prompt_logprobs else (),
    )


def _position_from_wire(message: worker_pb2.PositionLogprobs) -> PositionLogprobs:
    return PositionLogprobs(
        chosen=_token_from_wire(message.chosen), top=tuple(_token_from_wire(token) for token in message.top)
    )


def _token_from_wire(message: worker_pb2.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(token_id=message.token_id, logprob=message.logprob, token_bytes=message.token_bytes)


def _finished_from_wire(finished: worker_pb2.Finished) -> GenerationFinished:
    reason = _FINISH_REASONS.get(finished.finish_reason)
    if reason is None:
        raise Unavailable(
            "The worker gave the request up before it was finished.",
            code="generation_aborted",
            remedy="Send the request again.",
        )
    stopped_by = finished.WhichOneof("stop_reason")
    return GenerationFinished(
        finish_reason=reason,
        num_prompt_tokens=finished.num_prompt_tokens,
        num_completion_tokens=finished.num_completion_tokens,
        budgets_used=tuple(budget_from_wire(budget) for budget in finished.budgets_used),
        ttft_seconds=finished.ttft_seconds,
        e2e_latency_seconds=finished.e2e_latency_seconds,
        choice_idx=finished.choice_idx,
        num_cached_tokens=finished.num_cached_tokens,
        stop_reason=None if stopped_by is None else getattr(finished, stopped_by),
        gating=tuple(map(_gating_from_wire, finished.gating)),
        num_gated_tokens=finished.num_gated_tokens,
    )


def _gating_from_wire(module: worker_pb2.ModuleGating) -> ModuleGating:
    return ModuleGating(
        module_path=module.module_path,
        adapters=tuple(
            AdapterGating(adapter_id=adapter.adapter_id, num_tokens_fired=tuple(adapter.num_tokens_fired))
            for adapter in module.adapters
        ),
    )


def event_to_wire(event: WorkerEvent) -> worker_pb2.GenerateEvent:
    """One event as the worker sent it, for clients of the router's own gRPC door."""
    match event:
        case GenerationStarted():
            return worker_pb2.GenerateEvent(started=worker_pb2.Started(num_prompt_tokens=event.num_prompt_tokens))
        case TextDelta():
            return worker_pb2.GenerateEvent(
                delta=worker_pb2.TextDelta(
                    text=event.text,
                    token_ids=event.token_ids,
                    choice_idx=event.choice_idx,
                    logprobs=_positions_to_wire(event.logprobs),
                    prompt_logprobs=_positions_to_wire(event.prompt_logprobs),
                )
            )
        case GenerationFinished():
            return worker_pb2.GenerateEvent(finished=_finished_to_wire(event))


def _finished_to_wire(event: GenerationFinished) -> worker_pb2.Finished:
    finished = worker_pb2.Finished(
        finish_reason=_FINISH_REASONS_TO_WIRE[event.finish_reason],
        num_prompt_tokens=event.num_prompt_tokens,
        num_completion_tokens=event.num_completion_tokens,
        budgets_used=[budget_to_wire(budget) for budget in event.budgets_used],
        ttft_seconds=event.ttft_seconds,
        e2e_latency_seconds=event.e2e_latency_seconds,
        choice_idx=event.choice_idx,
        num_cached_tokens=event.num_cached_tokens,
        gating=[
            worker_pb2.ModuleGating(
                module_path=module.module_path,
                adapters=[
                    worker_pb2.AdapterGating(adapter_id=adapter.adapter_id, num_tokens_fired=adapter.num_tokens_fired)
                    for adapter in module.adapters
                ],
            )
            for module in event.gating
        ],
        num_gated_tokens=event.num_gated_tokens,
    )
    if isinstance(event.stop_reason, str):
        finished.stop_text = event.stop_reason
    elif event.stop_reason is not None:
        finished.stop_token_id = event.stop_reason
    return finished


def _positions_to_wire(positions: Sequence[PositionLogprobs]) -> list[worker_pb2.PositionLogprobs]:
    def token(it: TokenLogprob) -> worker_pb2.TokenLogprob:
        return worker_pb2.TokenLogprob(token_id=it.token_id, logprob=it.logprob, token_bytes=it.token_bytes)

    return [
        worker_pb2.PositionLogprobs(chosen=token(position.chosen), top=[token(it) for it in position.top])
        for position in positions
    ]
