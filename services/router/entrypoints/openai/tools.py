"""OpenAI's `tools` and `tool_choice`: what the model may call, and whether it must."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from hilora.errors import InvalidInput
from services.router.entrypoints.openai.request_fields import StrictRequest, Text
from services.router.request import Grammar, GrammarKind, ToolCall
from services.router.tool_calls import ToolCallFormat

MAX_TOOLS = 128

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")]
"""Name of a function."""


class FunctionBody(StrictRequest):
    """A function that may be called."""

    name: FunctionName
    description: Text | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None


class ToolBody(StrictRequest):
    """One of `tools`."""

    type: Literal["function"]
    function: FunctionBody


class FunctionChoice(StrictRequest):
    """The function that a named choice names."""

    name: FunctionName


class NamedToolChoice(StrictRequest):
    """A `tool_choice` that names a function."""

    type: Literal["function"]
    function: FunctionChoice


ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice
"""OpenAI's `tool_choice`."""


class FunctionCallBody(StrictRequest):
    """The function of a call that an earlier answer made."""

    name: Text = Field(min_length=1, max_length=128)
    arguments: Text = ""


class ToolCallBody(StrictRequest):
    """A call of an earlier answer, sent back."""

    id: Text = Field(max_length=256)
    type: Literal["function"] = "function"
    function: FunctionCallBody
    index: int | None = None

    def tool_call(self) -> ToolCall:
        """The call in the router's own terms."""
        return ToolCall(call_id=self.id, name=self.function.name, arguments=self.function.arguments)


class ToolUse:
    """What the tools of a request come to.

    Args:
        tools: what the model may call.
        choice: whether it must; None is `auto`.
        allows_several: whether an answer may make several calls.
        format: how the base writes calls, as the operator says.

    Raises:
        InvalidInput: `invalid_parameter`: a choice without tools, or of a function that is not there.
    """

    def __init__(
        self,
        tools: list[ToolBody] | None,
        choice: ToolChoice | None,
        *,
        allows_several: bool,
        format: ToolCallFormat,  # noqa: A002  (the word for it)
    ) -> None:
        self._tools = tools or []
        self._choice = choice
        self._allows_several = allows_several
        self._format = format
        if not self._tools and (choice == "required" or isinstance(choice, NamedToolChoice)):
            raise _invalid_choice("It demands a call, and there are no tools.")
        if isinstance(choice, NamedToolChoice) and choice.function.name not in self.names:
            raise _invalid_choice(f"It names {choice.function.name!r}, which is none of the tools.")

    @property
    def is_active(self) -> bool:
        """Whether the answer may hold calls."""
        return bool(self._tools) and self._choice != "none"

    @property
    def names(self) -> frozenset[str]:
        """Functions that may be called."""
        return frozenset(tool.function.name for tool in self._tools)

    @property
    def forced_name(self) -> str | None:
        """The one function that must be called."""
        return self._choice.function.name if isinstance(self._choice, NamedToolChoice) else None

    def described(self) -> str:
        """The tools for the chat template; empty where the model is not to know of any."""
        if not self.is_active:
            return ""
        return json.dumps([tool.model_dump(exclude_none=True) for tool in self._tools], ensure_ascii=False)

    def format(self) -> ToolCallFormat:
        """How the calls of the answer are written."""
        if self.forced_name is not None:
            return ToolCallFormat.ARGUMENTS
        return ToolCallFormat.LIST if self._choice == "required" else self._format

    def grammar(self) -> Grammar | None:
        """What a forced call must look like."""
        if self.forced_name is not None:
            schema = next(_parameters(tool) for tool in self._tools if tool.function.name == self.forced_name)
        elif self._choice == "required":
            schema = {"type": "array", "items": {"anyOf": [_call_schema(tool) for tool in self._tools]}, "minItems": 1}
            if not self._allows_several:
                schema["maxItems"] = 1
        else:
            return None
        return Grammar(kind=GrammarKind.JSON_SCHEMA, text=json.dumps(schema))


def _parameters(tool: ToolBody) -> dict[str, Any]:
    return dict(tool.function.parameters or {"type": "object", "properties": {}})


def _call_schema(tool: ToolBody) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": tool.function.name}, "arguments": _parameters(tool)},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _invalid_choice(why: str) -> InvalidInput:
    return InvalidInput(
        f"tool_choice cannot be met: {why}",
        code="invalid_parameter",
        remedy="Send none, auto, required, or the name of one of the tools.",
        place="tool_choice",
    )
