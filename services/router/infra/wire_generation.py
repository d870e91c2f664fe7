"""Requests and the events of their answers as protobuf messages and back. Decisions: `wire_decisions`."""

from __future__ import annotations

from hilora.errors import Unavailable
from hilora_rpc.v1 import worker_pb2
from services.router.answer import FinishReason, GenerationFinished, GenerationStarted, TextDelta, WorkerEvent
from services.router.infra.wire_decisions import budget_from_wire, budget_to_wire, plan_to_wire
from services.router.request import ChatPrompt, ChatRole, SamplingParams, TextPrompt, WorkOrder

_ROLES = {
    ChatRole.SYSTEM: worker_pb2.CHAT_ROLE_SYSTEM,
    ChatRole.USER: worker_pb2.CHAT_ROLE_USER,
    ChatRole.ASSISTANT: worker_pb2.CHAT_ROLE_ASSISTANT,
}
_FINISH_REASONS = {
    worker_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    worker_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
}
_FINISH_REASONS_TO_WIRE = {value: key for key, value in _FINISH_REASONS.items()}

ROLES_FROM_WIRE = {value: key for key, value in _ROLES.items()}
"""Chat roles by their wire value, without UNSPECIFIED."""


def order_to_wire(order: WorkOrder) -> worker_pb2.GenerateRequest:
    """A work order as a worker's request."""
    request = order.request
    message = worker_pb2.GenerateRequest(
        request_id=request.request_id,
        sampling=sampling_to_wire(request.sampling),
        plan=plan_to_wire(order.plan),
    )
    match request.prompt:
        case TextPrompt(text=text):
            message.prompt = text
        case ChatPrompt(messages=messages):
            message.chat.messages.extend(
                worker_pb2.ChatMessage(role=_ROLES[turn.role], content=turn.content) for turn in messages
            )
    return message


def sampling_to_wire(sampling: SamplingParams) -> worker_pb2.SamplingParams:
    """Sampling parameters; what is None stays unset."""
    return worker_pb2.SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
        stop=sampling.stop,
        ignore_eos=sampling.ignore_eos,
    )


def sampling_from_wire(message: worker_pb2.SamplingParams) -> SamplingParams:
    """Sampling parameters; what is unset is None. The worker checks the ranges."""

    def given(name: str) -> bool:
        return message.HasField(name)  # pyright: ignore[reportArgumentType]  (the stubs list the names as literals)

    return SamplingParams(
        max_tokens=message.max_tokens if given("max_tokens") else None,
        temperature=message.temperature if given("temperature") else None,
        top_p=message.top_p if given("top_p") else None,
        top_k=message.top_k if given("top_k") else None,
        seed=message.seed if given("seed") else None,
        stop=tuple(message.stop),
        ignore_eos=message.ignore_eos if given("ignore_eos") else None,
    )


def event_from_wire(message: worker_pb2.GenerateEvent) -> WorkerEvent:
    """One event of a worker's stream.

    Raises:
        Unavailable: `generation_aborted`, where the worker gave a request up that nobody here cancelled.
    """
    match message.WhichOneof("event"):
        case "started":
            return GenerationStarted(num_prompt_tokens=message.started.num_prompt_tokens)
        case "delta":
            return TextDelta(text=message.delta.text, token_ids=tuple(message.delta.token_ids))
        case "finished":
            return _finished_from_wire(message.finished)
        case None:
            raise Unavailable(
                "A worker sent an event this router does not know.",
                code="incompatible_worker",
                remedy="Run router and workers at the same version.",
            )


def _finished_from_wire(finished: worker_pb2.Finished) -> GenerationFinished:
    reason = _FINISH_REASONS.get(finished.finish_reason)
    if reason is None:
        raise Unavailable(
            "The worker gave the request up before it was finished.",
            code="generation_aborted",
            remedy="Send the request again.",
        )
    return GenerationFinished(
        finish_reason=reason,
        num_prompt_tokens=finished.num_prompt_tokens,
        num_completion_tokens=finished.num_completion_tokens,
        budgets_used=tuple(budget_from_wire(budget) for budget in finished.budgets_used),
        ttft_seconds=finished.ttft_seconds,
        e2e_latency_seconds=finished.e2e_latency_seconds,
    )


def event_to_wire(event: WorkerEvent) -> worker_pb2.GenerateEvent:
    """One event as the worker sent it, for clients of the router's own gRPC door."""
    match event:
        case GenerationStarted():
            return worker_pb2.GenerateEvent(started=worker_pb2.Started(num_prompt_tokens=event.num_prompt_tokens))
        case TextDelta():
            return worker_pb2.GenerateEvent(delta=worker_pb2.TextDelta(text=event.text, token_ids=event.token_ids))
        case GenerationFinished():
            return worker_pb2.GenerateEvent(
                finished=worker_pb2.Finished(
                    finish_reason=_FINISH_REASONS_TO_WIRE[event.finish_reason],
                    num_prompt_tokens=event.num_prompt_tokens,
                    num_completion_tokens=event.num_completion_tokens,
                    budgets_used=[budget_to_wire(budget) for budget in event.budgets_used],
                    ttft_seconds=event.ttft_seconds,
                    e2e_latency_seconds=event.e2e_latency_seconds,
                )
            )
