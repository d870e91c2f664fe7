"""The chunks of an answer that streams, made from the events of its generations."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass

from services.router.answer import GenerationFinished, RouteResult, TextDelta
from services.router.entrypoints.openai.answers import AnswerShape
from services.router.entrypoints.openai.descriptions import JsonObject
from services.router.merging import NumberedEvent
from services.router.tool_calls import Piece, TextPiece, ToolCallScanner


@dataclass(slots=True)
class _OpenChoice:
    """One answer on its way."""

    index: int
    scanner: ToolCallScanner | None
    offset: int
    """Characters of its text that went out."""
    has_calls: bool = False


class AnswerStream:
    """Turns events into chunks.

    Args:
        shape: what the chunks look like.
        num_prompts: prompts of the request.
        includes_usage: whether a last chunk tells the token counts.
        on_first_text: called once, when the first text goes out.
    """

    def __init__(
        self, shape: AnswerShape, *, num_prompts: int, includes_usage: bool, on_first_text: Callable[[], None]
    ) -> None:
        self._shape = shape
        self._includes_usage = includes_usage
        self._on_first_text: Callable[[], None] | None = on_first_text
        self._routes: dict[int, RouteResult] = {}
        self._open: dict[int, _OpenChoice] = {}
        self._finished: list[list[GenerationFinished]] = [[] for _ in range(num_prompts)]

    async def chunks(self, events: AsyncGenerator[NumberedEvent]) -> AsyncGenerator[JsonObject]:
        """All chunks, in the order in which their events come."""
        # With a usage chunk at the end, all the others carry a null (OpenAI's reference, `stream_options`).
        no_usage: JsonObject = {"usage": None} if self._includes_usage else {}
        async for numbered in events:
            for chunk in self._chunks_of(numbered):
                yield chunk | no_usage if no_usage else chunk
        if self._includes_usage:
            yield self._shape.usage_chunk(self._routes[0], self._finished)

    def _chunks_of(self, numbered: NumberedEvent) -> Iterator[JsonObject]:
        prompt_idx, event = numbered
        first = prompt_idx * self._shape.num_choices
        if isinstance(event, TextDelta):
            yield from self._text(self._open[first + event.choice_idx], event)
        elif isinstance(event, GenerationFinished):
            self._finished[prompt_idx].append(event)
            yield from self._end(self._open.pop(first + event.choice_idx), self._routes[prompt_idx], event)
        elif isinstance(event, RouteResult):
            self._routes[prompt_idx] = event
            echo = self._shape.echoes[prompt_idx].text if self._shape.echoes else ""
            for index in range(first, first + self._shape.num_choices):
                self._open[index] = _OpenChoice(index=index, scanner=self._shape.scanner(), offset=len(echo))
                yield self._shape.opening(index, event)

    def _text(self, choice: _OpenChoice, delta: TextDelta) -> Iterator[JsonObject]:
        if delta.prompt_logprobs:
            yield self._shape.scored_echo(choice.index, delta.prompt_logprobs)
        if self._shape.is_echo_alone or not (delta.text or delta.logprobs):
            return
        if self._on_first_text is not None:
            self._on_first_text()
            self._on_first_text = None
        logprobs = self._shape.logprobs(delta.logprobs, offset=choice.offset)
        if choice.scanner is None:
            choice.offset += len(delta.text)
            if delta.text or logprobs is not None:
                yield self._shape.text(choice.index, delta.text, logprobs=logprobs)
            return
        if logprobs is not None:
            # What the tokens say may be held back for a while; what they weigh is known now.
            yield self._shape.text(choice.index, "", logprobs=logprobs)
        yield from self._pieces(choice, choice.scanner.feed(delta.text))

    def _end(self, choice: _OpenChoice, route: RouteResult, finished: GenerationFinished) -> Iterator[JsonObject]:
        if choice.scanner is not None:
            yield from self._pieces(choice, choice.scanner.end())
        yield self._shape.closing(choice.index, route, finished, has_calls=choice.has_calls)

    def _pieces(self, choice: _OpenChoice, pieces: Iterator[Piece]) -> Iterator[JsonObject]:
        for piece in pieces:
            if isinstance(piece, TextPiece):
                yield self._shape.text(choice.index, piece.text)
            else:
                choice.has_calls = True
                yield self._shape.call(choice.index, piece)
