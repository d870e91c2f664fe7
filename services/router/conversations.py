"""By what a conversation is known again, without the client saying which it is.

A client sends a conversation back with every turn. What it had after an answer, it has at the beginning of the next
turn: so the messages up to the last of the assistant's, as one hash, name the conversation at that point. Two branches
of a conversation are two from where they part. Nothing of the text is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence

from services.router.request import ChatMessage, ChatPrompt, ChatRole

_CALLS = "calls of tools"
"""Stands for what an answer said that called tools: clients send such answers back in several forms."""


def earlier_key(prompt: ChatPrompt, *, tenant: str | None) -> str | None:
    """The key of what was said up to the last answer; None where the assistant has not spoken."""
    messages = prompt.messages[:-1] if prompt.continues_final_message else prompt.messages
    answers = [place for place, message in enumerate(messages) if message.role is ChatRole.ASSISTANT]
    return _key((_line(message) for message in messages[: answers[-1] + 1]), tenant=tenant) if answers else None


def answered_keys(prompt: ChatPrompt, text: str, *, tenant: str | None) -> tuple[str, ...]:
    """The keys under which the next turn will know the conversation, once it has this answer."""
    messages: Sequence[ChatMessage] = prompt.messages
    if prompt.continues_final_message:
        messages, text = messages[:-1], messages[-1].content + text
    lines = [_line(message) for message in messages]
    answers = [_line(ChatMessage(role=ChatRole.ASSISTANT, content=text))]
    if prompt.tools:
        answers.append([ChatRole.ASSISTANT.value, _CALLS])
    return tuple(_key([*lines, answer], tenant=tenant) for answer in answers)


def _line(message: ChatMessage) -> list[str]:
    if message.tool_calls:
        return [message.role.value, _CALLS]
    # Clients trim what they show.
    return [message.role.value, message.content.strip(), message.name]


def _key(lines: Iterable[list[str]], *, tenant: str | None) -> str:
    said = json.dumps([tenant, *lines], ensure_ascii=True, separators=(",", ":"))
    return f"said-{hashlib.sha256(said.encode()).hexdigest()[:40]}"
