"""Answers in OpenAI's shape, each with a `hilora` object that says which adapters ran.

The answers to a request are numbered through: answer `c` to prompt `p` has the index `p * n + c`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from hilora.routing_plan import RocBudget
from services.router.answer import (
    CompletedChoice,
    CompletedGeneration,
    FinishReason,
    GenerationFinished,
    PositionLogprobs,
    RouteResult,
)
from services.router.entrypoints.openai.descriptions import JsonObject
from services.router.entrypoints.openai.route_answers import describe_candidates, describe_gating, describe_plan
from services.router.entrypoints.openai.token_probabilities import chat_logprobs, completion_logprobs
from services.router.entrypoints.openai.tools import ToolUse
from services.router.request import ToolCall
from services.router.tool_calls import ArgumentsPiece, CallPiece, ToolCallScanner, joined


class AnswerKind(StrEnum):
    """Which of OpenAI's two shapes an answer takes."""

    COMPLETION = "completion"
    CHAT = "chat"


@dataclass(frozen=True, kw_only=True, slots=True)
class Echo:
    """A prompt that is to stand before its answers."""

    text: str
    first_token: str | None = None
    """Its first token, where log-probabilities are told: nothing could predict it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerShape:
    """What all parts of one answer have in common."""

    kind: AnswerKind
    answer_id: str
    model: str
    """As the client wrote it."""
    explains: bool
    """Whether the client asked for the candidates."""
    explains_gating: bool = False
    """Whether it asked which components acted."""
    num_choices: int = 1
    """Answers to each prompt."""
    tells_logprobs: bool = False
    tools: ToolUse | None = None
    """What may be called; None for nothing."""
    echoes: tuple[Echo, ...] = ()
    """By prompt; empty where prompts are not given back."""
    is_echo_alone: bool = False
    """Whether the prompt is all that is wanted."""
    created_at: int = field(default_factory=lambda: int(time.time()))

    def scanner(self) -> ToolCallScanner | None:
        """Finds the calls of one answer; None where none are to be found."""
        if self.tools is None or not self.tools.is_active:
            return None
        return ToolCallScanner(self.tools.format(), names=self.tools.names, forced_name=self.tools.forced_name)

    def whole(self, done: Sequence[CompletedGeneration]) -> JsonObject:
        """The answer of a request that does not stream, by prompt."""
        choices = [
            # The prompt is scored once, with the first answer to it.
            self._whole_choice(generation.route, prompt_idx, choice_idx, choice, generation.choices[0].prompt_logprobs)
            for prompt_idx, generation in enumerate(done)
            for choice_idx, choice in enumerate(generation.choices)
        ]
        described = self._ended(done[0].route, done[0].choices[0].finished)
        if len(done) > 1:
            described["prompts"] = [self._ended(one.route, one.choices[0].finished) for one in done]
        return {
            **self._head("chat.completion" if self.kind is AnswerKind.CHAT else "text_completion"),
            "choices": choices,
            "usage": usage([[choice.finished for choice in one.choices] for one in done]),
            "hilora": described,
        }

    def opening(self, index: int, route: RouteResult) -> JsonObject:
        """The first chunk of an answer: for chat the role, for both the plan."""
        if self.kind is AnswerKind.CHAT:
            chunk = self._delta(index, {"role": "assistant", "content": ""})
        else:
            chunk = self.text(index, self._echoed_at_once(index))
        chunk["hilora"] = self.hilora(route, route.decision.plan.budgets)
        return chunk

    def _echoed_at_once(self, index: int) -> str:
        """The prompt, where it need not wait for its log-probabilities."""
        echo = self._echo_of(index)
        return echo.text if echo.first_token is None else ""

    def _echo_of(self, index: int) -> Echo:
        return self.echoes[index // self.num_choices] if self.echoes else Echo(text="")

    def scored_echo(self, index: int, positions: Sequence[PositionLogprobs]) -> JsonObject:
        """A chunk with the prompt and its log-probabilities."""
        echo = self._echo_of(index)
        logprobs = completion_logprobs(positions, first_offset=0, first_token=echo.first_token)
        return self.text(index, echo.text, logprobs=logprobs)

    def text(self, index: int, text: str, *, logprobs: JsonObject | None = None) -> JsonObject:
        """A chunk with more text."""
        if self.kind is AnswerKind.CHAT:
            return self._delta(index, {"content": text}, logprobs=logprobs)
        return self._chunk({"index": index, "text": text, "logprobs": logprobs, "finish_reason": None})

    def call(self, index: int, piece: CallPiece | ArgumentsPiece) -> JsonObject:
        """A chunk with the beginning of a call, or with more of its arguments."""
        if isinstance(piece, CallPiece):
            begun = _call(ToolCall(call_id=piece.call_id, name=piece.name, arguments=""))
            return self._delta(index, {"tool_calls": [{"index": piece.call_idx, **begun}]})
        more = {"index": piece.call_idx, "function": {"arguments": piece.text}}
        return self._delta(index, {"tool_calls": [more]})

    def closing(self, index: int, route: RouteResult, finished: GenerationFinished, *, has_calls: bool) -> JsonObject:
        """The chunk that says why an answer ended, and what really ran."""
        reason = _finish_reason(finished, has_calls=has_calls)
        empty: JsonObject = {"delta": {}} if self.kind is AnswerKind.CHAT else {"text": ""}
        end = {"logprobs": None, "finish_reason": reason, "stop_reason": finished.stop_reason}
        chunk = self._chunk({"index": index, **empty, **end})
        chunk["hilora"] = self._ended(route, finished)
        return chunk

    def usage_chunk(self, route: RouteResult, finished: Sequence[Sequence[GenerationFinished]]) -> JsonObject:
        """The chunk without choices that `stream_options.include_usage` asks for.

        Args:
            route: of the first prompt.
            finished: the ends of the answers, by prompt.
        """
        return {**self._chunk(None), "usage": usage(finished), "hilora": self._ended(route, finished[0][0])}

    def logprobs(self, positions: Sequence[PositionLogprobs], *, offset: int) -> JsonObject | None:
        """Log-probabilities of a piece of an answer, if they are told.

        Args:
            positions: of the piece's tokens.
            offset: where it begins in the answer's text.
        """
        if not self.tells_logprobs:
            return None
        if self.kind is AnswerKind.CHAT:
            return chat_logprobs(positions)
        return completion_logprobs(positions, first_offset=offset)

    def hilora(self, route: RouteResult, budgets: Sequence[RocBudget]) -> JsonObject:
        """The extension object of an answer."""
        described = describe_plan(route, budgets)
        if self.explains:
            described["candidates"] = describe_candidates(route.decision)
        return described

    def _ended(self, route: RouteResult, finished: GenerationFinished) -> JsonObject:
        """The same once an answer is complete: with what really ran, and which components acted, if that was asked."""
        described = self.hilora(route, finished.budgets_used)
        return described | describe_gating(route, finished) if self.explains_gating else described

    def _whole_choice(
        self,
        route: RouteResult,
        prompt_idx: int,
        choice_idx: int,
        choice: CompletedChoice,
        prompt_logprobs: tuple[PositionLogprobs, ...],
    ) -> JsonObject:
        index = prompt_idx * self.num_choices + choice_idx
        if self.kind is AnswerKind.CHAT:
            content, calls = self._read(choice.text)
            message: JsonObject = {"role": "assistant", "content": content, "refusal": None}
            if calls:
                message["tool_calls"] = [_call(call) for call in calls]
                message["content"] = content or None
            body: JsonObject = {"message": message}
            logprobs = self.logprobs(choice.logprobs, offset=0)
        else:
            calls = ()
            echo = self._echo_of(index)
            body = {"text": echo.text + ("" if self.is_echo_alone else choice.text)}
            logprobs = self._completion_logprobs(choice, echo, prompt_logprobs)
        return {
            "index": index,
            **body,
            "logprobs": logprobs,
            "finish_reason": _finish_reason(choice.finished, has_calls=bool(calls)),
            "stop_reason": choice.finished.stop_reason,
            **self._own_gating(route, choice.finished),
        }

    def _own_gating(self, route: RouteResult, finished: GenerationFinished) -> JsonObject:
        """What a choice tells of its components, where there are several: they need not act alike."""
        if not self.explains_gating or self.num_choices == 1:
            return {}
        return {"hilora": describe_gating(route, finished)}

    def _completion_logprobs(
        self, choice: CompletedChoice, echo: Echo, prompt_logprobs: tuple[PositionLogprobs, ...]
    ) -> JsonObject | None:
        if not self.tells_logprobs:
            return None
        if echo.first_token is None:
            return completion_logprobs(choice.logprobs, first_offset=len(echo.text))
        answer = () if self.is_echo_alone else choice.logprobs
        return completion_logprobs((*prompt_logprobs, *answer), first_offset=0, first_token=echo.first_token)

    def _read(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """The words of an answer and its calls."""
        scanner = self.scanner()
        return (text, ()) if scanner is None else joined([*scanner.feed(text), *scanner.end()])

    def _delta(self, index: int, delta: JsonObject, *, logprobs: JsonObject | None = None) -> JsonObject:
        return self._chunk({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None})

    def _head(self, object_name: str) -> JsonObject:
        return {"id": self.answer_id, "object": object_name, "created": self.created_at, "model": self.model}

    def _chunk(self, choice: JsonObject | None) -> JsonObject:
        return {
            **self._head("chat.completion.chunk" if self.kind is AnswerKind.CHAT else "text_completion"),
            "choices": [] if choice is None else [choice],
        }


def usage(finished: Sequence[Sequence[GenerationFinished]]) -> JsonObject:
    """OpenAI's token counts; a prompt counts once, however many answers it has.

    Args:
        finished: the ends of the answers, by prompt.
    """
    num_prompt_tokens = sum(ends[0].num_prompt_tokens for ends in finished)
    num_completion_tokens = sum(end.num_completion_tokens for ends in finished for end in ends)
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_completion_tokens,
        "total_tokens": num_prompt_tokens + num_completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(ends[0].num_cached_tokens for ends in finished)},
    }


def _finish_reason(finished: GenerationFinished, *, has_calls: bool) -> str:
    # An answer that was cut off is cut off, whatever it called before.
    if has_calls and finished.finish_reason is FinishReason.STOP:
        return "tool_calls"
    return finished.finish_reason.value


def _call(call: ToolCall) -> JsonObject:
    return {
        "id": call.call_id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
