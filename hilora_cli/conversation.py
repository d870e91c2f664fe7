"""A conversation with a running server: what was said, how it is to be answered, and the requests that follow."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hilora_cli.api_client import ApiClient

_SESSION_HEADER = "X-Session-Id"


class Explain(StrEnum):
    """How much an answer says of its adapters."""

    OFF = "off"
    """Their names."""
    ON = "on"
    """What they were granted, and why."""
    TOKENS = "tokens"
    """Also which of their components acted. The server reads prompt and answer once more for that."""


@dataclass(kw_only=True, slots=True)
class Answer:
    """An answer as far as it has come."""

    text: str = ""
    hilora: dict[str, Any] = field(default_factory=dict[str, Any])
    """The server's object of that name: which adapters ran, and why."""
    finish_reason: str | None = None
    """None while it goes on, or where it was interrupted."""
    num_tokens: int | None = None
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """A question and its answer."""

    question: str
    answer: Answer


@dataclass(kw_only=True, slots=True)
class Conversation:
    """What is said, and how it is to be answered."""

    model: str = "auto"
    system: str = ""
    """Instructions before everything else; empty: none."""
    explain: Explain = Explain.ON
    max_tokens: int = 512
    temperature: float = 0.0
    exclude: tuple[str, ...] = ()
    """Adapters that may not be chosen."""
    turns: list[Turn] = field(default_factory=list[Turn])
    session_id: str = field(default_factory=lambda: f"chat-{uuid.uuid4().hex}")
    """Tells the server which requests belong together."""
    last_question: str | None = None
    """Answered or not."""
    _taken_back: Turn | None = None
    """What is to be answered anew; it stays unless that happens."""

    def reset(self) -> None:
        """Forget what was said; the next question begins another conversation. Settings stay."""
        self.turns.clear()
        self.session_id = f"chat-{uuid.uuid4().hex}"
        self.last_question = None

    @property
    def headers(self) -> dict[str, str]:
        """Of every request that belongs to it."""
        return {_SESSION_HEADER: self.session_id}

    def messages(self, question: str | None = None) -> list[dict[str, str]]:
        """What was said, in OpenAI's shape, and a question after it."""
        said = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            said.append({"role": "user", "content": turn.question})
            said.append({"role": "assistant", "content": turn.answer.text})
        if question is not None:
            said.append({"role": "user", "content": question})
        return said

    async def ask(self, client: ApiClient, question: str, answer: Answer, on_text: Callable[[str], None]) -> None:
        """Have a question answered. What has been said of the answer is kept even if the rest never comes.

        Args:
            client: of the server.
            question: of the user.
            answer: is filled while it comes.
            on_text: told each piece of text.

        Raises:
            HiloraError: what the server said, or that it does not answer.
        """
        self.last_question = question
        body = {
            "model": self.model,
            "messages": self.messages(question),
            "max_completion_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            "hilora": {
                "explain": self.explain.value if self.explain is Explain.TOKENS else self.explain is Explain.ON,
                "exclude_adapters": list(self.exclude),
            },
        }
        started = time.monotonic()
        try:
            async for event in client.stream("/v1/chat/completions", body, headers=self.headers):
                answer.hilora = event.get("hilora") or answer.hilora
                answer.num_tokens = (event.get("usage") or {}).get("completion_tokens", answer.num_tokens)
                for choice in event["choices"]:
                    answer.finish_reason = choice["finish_reason"] or answer.finish_reason
                    if text := choice["delta"].get("content"):
                        answer.text += text
                        answer.seconds = time.monotonic() - started
                        on_text(text)
        finally:
            answer.seconds = time.monotonic() - started
            if answer.finish_reason is not None or answer.text:
                self.turns.append(Turn(question=question, answer=answer))
            elif self._taken_back is not None:
                self.turns.append(self._taken_back)
            self._taken_back = None

    def take_back(self) -> str | None:
        """Take the last question back, if it was answered, and return it, to be asked at once. None: there is none."""
        if self.turns and self.turns[-1].question == self.last_question:
            self._taken_back = self.turns.pop()
        return self.last_question

    def record(self) -> dict[str, Any]:
        """All of it as JSON, each answer with what the server told of its adapters."""
        return {
            "session_id": self.session_id,
            "model": self.model,
            "system": self.system,
            "turns": [
                {
                    "question": turn.question,
                    "answer": turn.answer.text,
                    "finish_reason": turn.answer.finish_reason,
                    "hilora": turn.answer.hilora,
                }
                for turn in self.turns
            ],
        }
