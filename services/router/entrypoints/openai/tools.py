"""OpenAI's `tools` and `tool_choice`: what the model may call, and whether it must."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field

from hilora.errors import InvalidInput
from services.router.entrypoints.openai.call_schemas import (
    FunctionBody,
    FunctionName,
    call_list_schema,
    calls_or_answer_schema,
    parameters_of,
)
from services.router.entrypoints.openai.request_fields import StrictRequest, Text
from services.router.request import Grammar, GrammarKind, ToolCall
from services.router.tool_calls import ToolCallFormat

MAX_TOOLS = 128


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
        form: what an answer without calls must look like; None leaves that to the model.

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
        form: Grammar | None = None,
    ) -> None:
        self._form = form
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

    @property
    def _is_forced(self) -> bool:
        return self.forced_name is not None or self._choice == "required"

    def format(self) -> ToolCallFormat:
        """How the calls of the answer are written."""
        if self.forced_name is not None:
            return ToolCallFormat.ARGUMENTS
        return ToolCallFormat.LIST if self._is_forced or self._form is not None else self._format

    def grammar(self) -> Grammar | None:
        """What the answer must look like.

        Raises:
            InvalidInput: `invalid_parameter`, where a call and another form of answer are both demanded.
        """
        if not self.is_active:
            return self._form
        if self._is_forced and self._form is not None:
            raise _conflict("tool_choice demands a call, and another parameter demands another form of answer.")
        functions = [tool.function for tool in self._tools]
        if self.forced_name is not None:
            return _written(
                next(parameters_of(function) for function in functions if function.name == self.forced_name)
            )
        if self._is_forced:
            return _written(call_list_schema(functions, allows_several=self._allows_several))
        if self._form is None:
            return None
        # The model chooses: calls, or an answer of that form.
        if self._form.kind not in {GrammarKind.JSON_SCHEMA, GrammarKind.JSON_OBJECT}:
            raise _conflict("Beside tools, only JSON can be the form of an answer.")
        schema = calls_or_answer_schema(functions, answer=self._form.text, allows_several=self._allows_several)
        return _written(schema)


def _written(schema: dict[str, Any]) -> Grammar:
    return Grammar(kind=GrammarKind.JSON_SCHEMA, text=json.dumps(schema))


def _conflict(why: str) -> InvalidInput:
    return InvalidInput(
        why, code="invalid_parameter", remedy="Send one of the two, or tool_choice none.", place="tool_choice"
    )


def _invalid_choice(why: str) -> InvalidInput:
    return InvalidInput(
        f"tool_choice cannot be met: {why}",
        code="invalid_parameter",
        remedy="Send none, auto, required, or the name of one of the tools.",
        place="tool_choice",
    )
