"""A conversation as a chat template takes it, tools included.

Templates agree on `messages` of `role` and `content`, and those that were made for tools on `tools`, `tool_calls` and
the role `tool`. A template that was not made for them gets the same in words, in the form that the Hermes models made
common: tools described in a system turn, calls and results between tags.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hilora.errors import InvalidInput

_TOOLS_IN_TEMPLATE = re.compile(r"\btools\b")


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnToolCall:
    """A call that the model made in an earlier turn."""

    call_id: str
    name: str
    arguments: str
    """A JSON object, as text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatTurn:
    """One message of a conversation."""

    role: str
    """`system`, `user`, `assistant` or `tool`."""
    content: str
    tool_calls: tuple[TurnToolCall, ...] = ()
    """What an assistant's message calls."""
    tool_call_id: str = ""
    """Which call a tool's message answers."""
    name: str = ""
    """The speaker's name, or the tool's; may be empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TemplateInput:
    """The arguments of a chat template."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    """None for a template that does not know them, or where there are none."""


def template_input(turns: Sequence[ChatTurn], *, tools: str, template: str) -> TemplateInput:
    """What to call a template with.

    Args:
        turns: the conversation.
        tools: a JSON list of OpenAI's tool objects; empty for none.
        template: the template's source, which tells whether it has a place for tools.

    Raises:
        InvalidInput: `invalid_tools`.
    """
    listed = _parsed_tools(tools)
    if _TOOLS_IN_TEMPLATE.search(template):
        return TemplateInput(messages=[_message(turn) for turn in turns], tools=listed or None)
    worded = [_in_words(turn) for turn in turns]
    if listed:
        worded = _with_description(worded, listed)
    return TemplateInput(messages=[_message(turn) for turn in worded], tools=None)


def _message(turn: ChatTurn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.name:
        message["name"] = turn.name
    if turn.tool_call_id:
        message["tool_call_id"] = turn.tool_call_id
    if turn.tool_calls:
        message["tool_calls"] = [
            {
                "id": call.call_id,
                "type": "function",
                # Templates write them out themselves: as text they would be quoted twice.
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in turn.tool_calls
        ]
    return message


def _in_words(turn: ChatTurn) -> ChatTurn:
    if turn.role == "tool":
        return ChatTurn(role="user", content=f"<tool_response>\n{turn.content}\n</tool_response>")
    if not turn.tool_calls:
        return turn
    calls = [
        json.dumps({"name": call.name, "arguments": _arguments(call.arguments)}, ensure_ascii=False)
        for call in turn.tool_calls
    ]
    parts = [*([turn.content] if turn.content else []), *(f"<tool_call>\n{call}\n</tool_call>" for call in calls)]
    return replace(turn, content="\n".join(parts), tool_calls=())


def _with_description(turns: Sequence[ChatTurn], tools: Sequence[dict[str, Any]]) -> list[ChatTurn]:
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    description = (
        f"You may call functions. These are there:\n<tools>\n{lines}\n</tools>\n"
        'To call one, write <tool_call>\n{"name": its name, "arguments": a JSON object}\n</tool_call>'
    )
    if turns[0].role == "system":
        return [replace(turns[0], content=f"{turns[0].content}\n\n{description}"), *turns[1:]]
    return [ChatTurn(role="system", content=description), *turns]


def _parsed_tools(tools: str) -> list[dict[str, Any]]:
    if not tools:
        return []
    try:
        listed: Any = json.loads(tools)
    except ValueError as error:
        raise _invalid_tools("they are not JSON") from error
    if not isinstance(listed, list) or not all(isinstance(tool, dict) for tool in listed):  # pyright: ignore[reportUnknownVariableType]
        raise _invalid_tools("they are not a list of objects")
    return listed  # pyright: ignore[reportUnknownVariableType]


def _arguments(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        # A model wrote them: the next turn should see what it wrote.
        return text


def _invalid_tools(why: str) -> InvalidInput:
    return InvalidInput(
        f"The tools cannot be read: {why}.",
        code="invalid_tools",
        remedy="Send OpenAI's list of tool objects.",
        place="tools",
    )
