"""Going on with an answer whose worker was lost: another worker makes it anew, and what is out already is left out.

A worker's answer depends on prompt, plan, parameters and seed alone, so the second one is the first one again, with
its penalties, grammars, stop texts and half characters, which a continuation from tokens would all begin afresh. That
it is the same is checked, not believed: where it differs in anything that is out, the stream ends with an error.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace

from hilora.errors import Unavailable
from services.router.answer import GenerationFinished, GenerationStarted, TextDelta, WorkerEvent
from services.router.request import WorkOrder


@dataclass(slots=True)
class _Choice:
    """What is out of one answer."""

    text: list[str] = field(default_factory=list[str])
    token_ids: list[int] = field(default_factory=list[int])
    has_prompt_logprobs: bool = False
    is_finished: bool = False


@dataclass(slots=True)
class _Repeat:
    """What has to be repeated of one answer before anything new may come."""

    text: str
    token_ids: tuple[int, ...]

    @property
    def is_done(self) -> bool:
        return not self.text and not self.token_ids


class Transcript:
    """What a client has of a stream. Ask `new_part` of every event, and pass on what it gives."""

    def __init__(self) -> None:
        self._is_started = False
        self._choices: dict[int, _Choice] = {}
        self._repeats: dict[int, _Repeat] = {}

    @property
    def has_begun(self) -> bool:
        """Whether anything is out."""
        return self._is_started or bool(self._choices)

    def begin_again(self) -> None:
        """The next events are another worker's, from the beginning."""
        self._repeats = {
            choice_idx: _Repeat("".join(choice.text), tuple(choice.token_ids))
            for choice_idx, choice in self._choices.items()
        }

    def new_part(self, event: WorkerEvent) -> WorkerEvent | None:
        """What of an event is not out yet; it counts as out from now on.

        Raises:
            Unavailable: `worker_lost`, if a second worker's answer is not the first one's.
        """
        match event:
            case GenerationStarted():
                is_new, self._is_started = not self._is_started, True
                return event if is_new else None
            case TextDelta():
                return self._new_text(event)
            case GenerationFinished():
                choice = self._choices.setdefault(event.choice_idx, _Choice())
                repeat = self._repeats.get(event.choice_idx)
                if repeat is not None and not repeat.is_done:
                    raise _different()
                is_new, choice.is_finished = not choice.is_finished, True
                return event if is_new else None

    def _new_text(self, delta: TextDelta) -> TextDelta | None:
        choice = self._choices.setdefault(delta.choice_idx, _Choice())
        repeat = self._repeats.get(delta.choice_idx)
        if repeat is not None:
            delta = _beyond(repeat, delta)
        if delta.prompt_logprobs:
            if choice.has_prompt_logprobs:
                delta = replace(delta, prompt_logprobs=())
            choice.has_prompt_logprobs = True
        if not (delta.text or delta.token_ids or delta.prompt_logprobs):
            return None
        if choice.is_finished:
            raise _different()
        choice.text.append(delta.text)
        choice.token_ids.extend(delta.token_ids)
        return delta


def repeatable(order: WorkOrder) -> WorkOrder:
    """The order with a seed, if it draws and has none: two workers must draw alike."""
    sampling = order.request.sampling
    if sampling.temperature == 0 or sampling.seed is not None:
        return order
    seeded = replace(sampling, seed=secrets.randbits(63))
    return replace(order, request=replace(order.request, sampling=seeded))


def _beyond(repeat: _Repeat, delta: TextDelta) -> TextDelta:
    """What of a repeated delta goes beyond what is out. Text may lag behind its tokens, so each has its own end."""
    num_chars = min(len(repeat.text), len(delta.text))
    num_tokens = min(len(repeat.token_ids), len(delta.token_ids))
    if repeat.text[:num_chars] != delta.text[:num_chars] or (
        repeat.token_ids[:num_tokens] != delta.token_ids[:num_tokens]
    ):
        raise _different()
    repeat.text = repeat.text[num_chars:]
    repeat.token_ids = repeat.token_ids[num_tokens:]
    return replace(
        delta,
        text=delta.text[num_chars:],
        token_ids=delta.token_ids[num_tokens:],
        logprobs=delta.logprobs[num_tokens:],
    )


def _different() -> Unavailable:
    return Unavailable(
        "The worker went away, and another one answers differently: the answer cannot be continued.",
        code="worker_lost",
        remedy="Send the request again.",
    )
