"""Answers in OpenAI's shape, each with a `hilora` object that says which adapters ran."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from hilora.routing_plan import RocBudget, RoutingDecision
from services.router.answer import CompletedGeneration, GenerationFinished, RouteResult
from services.router.models import PublicModel
from services.router.traffic import TrafficReport

JsonObject = dict[str, Any]


class AnswerKind(StrEnum):
    """Which of OpenAI's two shapes an answer takes."""

    COMPLETION = "completion"
    CHAT = "chat"


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerShape:
    """What all parts of one answer have in common."""

    kind: AnswerKind
    answer_id: str
    model: str
    """As the client wrote it."""
    explains: bool
    """Whether the client asked for the candidates."""
    created_at: int = field(default_factory=lambda: int(time.time()))

    def whole(self, done: CompletedGeneration) -> JsonObject:
        """The answer of a request that does not stream."""
        choice: JsonObject = {
            "index": 0,
            "logprobs": None,
            "finish_reason": done.finished.finish_reason.value,
        }
        if self.kind is AnswerKind.CHAT:
            choice["message"] = {"role": "assistant", "content": done.text, "refusal": None}
        else:
            choice["text"] = done.text
        return {
            **self._head("chat.completion" if self.kind is AnswerKind.CHAT else "text_completion"),
            "choices": [choice],
            "usage": usage(done.finished),
            "hilora": self.hilora(done.route, done.finished.budgets_used),
        }

    def opening(self, route: RouteResult) -> JsonObject:
        """The first chunk: for chat the role, for both the plan."""
        chunk = self.piece("", is_opening=True)
        chunk["hilora"] = self.hilora(route, route.decision.plan.budgets)
        return chunk

    def piece(self, text: str, *, is_opening: bool = False) -> JsonObject:
        """A chunk with more text."""
        if self.kind is AnswerKind.CHAT:
            delta = {"role": "assistant", "content": text} if is_opening else {"content": text}
            return self._chunk({"index": 0, "delta": delta, "logprobs": None, "finish_reason": None})
        return self._chunk({"index": 0, "text": text, "logprobs": None, "finish_reason": None})

    def closing(self, route: RouteResult, finished: GenerationFinished) -> JsonObject:
        """The chunk that says why the text ended, and what really ran."""
        reason = finished.finish_reason.value
        if self.kind is AnswerKind.CHAT:
            chunk = self._chunk({"index": 0, "delta": {}, "logprobs": None, "finish_reason": reason})
        else:
            chunk = self._chunk({"index": 0, "text": "", "logprobs": None, "finish_reason": reason})
        chunk["hilora"] = self.hilora(route, finished.budgets_used)
        return chunk

    def usage_chunk(self, route: RouteResult, finished: GenerationFinished) -> JsonObject:
        """The chunk without choices that `stream_options.include_usage` asks for."""
        return {
            **self._chunk(None),
            "usage": usage(finished),
            "hilora": self.hilora(route, finished.budgets_used),
        }

    def hilora(self, route: RouteResult, budgets: Sequence[RocBudget]) -> JsonObject:
        """The extension object of an answer."""
        described = describe_plan(route.decision, budgets)
        if self.explains:
            described["candidates"] = describe_candidates(route.decision)
        return described

    def _head(self, object_name: str) -> JsonObject:
        return {"id": self.answer_id, "object": object_name, "created": self.created_at, "model": self.model}

    def _chunk(self, choice: JsonObject | None) -> JsonObject:
        return {
            **self._head("chat.completion.chunk" if self.kind is AnswerKind.CHAT else "text_completion"),
            "choices": [] if choice is None else [choice],
        }


def usage(finished: GenerationFinished) -> JsonObject:
    """OpenAI's token counts."""
    return {
        "prompt_tokens": finished.num_prompt_tokens,
        "completion_tokens": finished.num_completion_tokens,
        "total_tokens": finished.num_prompt_tokens + finished.num_completion_tokens,
    }


def describe_plan(decision: RoutingDecision, budgets: Sequence[RocBudget]) -> JsonObject:
    """Which adapters run and why, for a person."""
    return {
        "adapters": [
            {
                "name": budget.adapter_name,
                "adapter_id": budget.adapter_id,
                "num_rocs": budget.num_rocs,
                "lora_rank": budget.lora_rank,
                "weight": budget.weight,
            }
            for budget in budgets
        ],
        "mode": decision.mode.value,
        "is_out_of_distribution": decision.is_out_of_distribution,
        "catalog_generation": decision.plan.catalog_generation,
        "reason": decision.reason,
    }


def describe_candidates(decision: RoutingDecision) -> list[JsonObject]:
    """The scores behind a plan: the chosen adapters first, then the runners-up."""
    return [
        {
            "name": candidate.adapter_name,
            "adapter_id": candidate.adapter_id,
            "log_likelihood": candidate.log_likelihood,
            "log_likelihood_ratio": candidate.log_likelihood_ratio,
            "posterior": candidate.posterior,
            "num_rocs": candidate.num_rocs,
            "weight": candidate.weight,
        }
        for candidate in decision.candidates
    ]


def describe_route(route: RouteResult) -> JsonObject:
    """The answer of `POST /v1/route`."""
    decision = route.decision
    gate = decision.plan.gate
    return {
        "object": "hilora.route",
        "mode": decision.mode.value,
        "is_out_of_distribution": decision.is_out_of_distribution,
        "reason": decision.reason,
        "candidates": describe_candidates(decision),
        "plan": {
            "budgets": describe_plan(decision, decision.plan.budgets)["adapters"],
            "num_rocs": decision.plan.num_rocs,
            "gate": {
                "score": gate.score.value,
                "scope": gate.scope.value,
                "basis": gate.basis.value,
                "eta": gate.eta,
            },
            "catalog_generation": decision.plan.catalog_generation,
            "digest": decision.plan.digest,
        },
        "catalog_generation": route.catalog_generation,
        "encoder_id": route.encoder_id,
        "timings": {"encode_seconds": route.encode_seconds, "decide_seconds": route.decide_seconds},
    }


def describe_model(model: PublicModel) -> JsonObject:
    """One line of `GET /v1/models`, with the fields that vLLM added for adapters."""
    return {
        "id": model.model_id,
        "object": "model",
        "created": model.created_at,
        "owned_by": "hilora",
        "root": model.root,
        "parent": model.parent,
        "max_model_len": model.max_model_len,
    }


def describe_traffic(report: TrafficReport) -> JsonObject:
    """`GET /v1/route/stats`."""
    return {
        "object": "hilora.traffic",
        "window_seconds": report.window_seconds,
        "num_decisions": report.num_decisions,
        "adapters": [
            {
                "name": traffic.adapter_name,
                "num_decisions": traffic.num_decisions,
                "share": traffic.share,
                "earlier_share": traffic.earlier_share,
                "alarm": traffic.alarm,
            }
            for traffic in report.adapters
        ],
    }


def answer_headers(decision: RoutingDecision, budgets: Sequence[RocBudget]) -> dict[str, str]:
    """The same in short, for clients that drop unknown fields. `name:num_rocs/weight`, comma-separated."""
    return {
        "X-HiLoRA-Adapters": ",".join(
            f"{budget.adapter_name}:{budget.num_rocs}/{budget.weight:.4g}" for budget in budgets
        ),
        "X-HiLoRA-Catalog-Generation": str(decision.plan.catalog_generation),
        "X-HiLoRA-Mode": decision.mode.value,
        "X-HiLoRA-OOD": str(decision.is_out_of_distribution).lower(),
    }
