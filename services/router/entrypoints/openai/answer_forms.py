"""What an answer must look like: OpenAI's `response_format`, vLLM's `structured_outputs`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, JsonValue

from hilora.errors import InvalidInput
from services.router.entrypoints.openai.request_fields import StrictRequest, Text
from services.router.request import Grammar, GrammarKind


def json_schema_grammar(schema: dict[str, JsonValue] | str) -> Grammar:
    """An instance of a schema."""
    return Grammar(kind=GrammarKind.JSON_SCHEMA, text=schema if isinstance(schema, str) else json.dumps(schema))


def regex_grammar(expression: str) -> Grammar:
    """A text that an expression matches as a whole."""
    return Grammar(kind=GrammarKind.REGEX, text=expression)


def choice_grammar(texts: Sequence[str]) -> Grammar:
    """One of some texts."""
    return Grammar(kind=GrammarKind.CHOICE, choices=tuple(texts))


class JsonSchemaFormat(StrictRequest):
    """The schema of a `response_format`."""

    name: Text = Field(default="answer", max_length=256)
    description: Text | None = None
    strict: bool | None = None
    # `schema` is a method of pydantic's own.
    json_schema: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue], alias="schema")


class ResponseFormat(StrictRequest):
    """OpenAI's `response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    def grammar(self) -> Grammar | None:
        """What the answer must look like.

        Raises:
            InvalidInput: `missing_parameter`.
        """
        match self.type:
            case "text":
                return None
            case "json_object":
                return Grammar(kind=GrammarKind.JSON_OBJECT)
            case "json_schema":
                if self.json_schema is None:
                    raise InvalidInput(
                        "A response_format of type json_schema needs a json_schema.",
                        code="missing_parameter",
                        remedy='Send {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}.',
                        place="response_format.json_schema",
                    )
                return json_schema_grammar(self.json_schema.json_schema)


class StructuredOutputs(StrictRequest):
    """vLLM's `structured_outputs`: exactly one of them."""

    json_: dict[str, JsonValue] | Text | None = Field(default=None, alias="json")
    json_object: bool | None = None
    regex: Text | None = None
    choice: list[Text] | None = None

    def grammar(self) -> Grammar:
        """What the answer must look like.

        Raises:
            InvalidInput: `invalid_parameter`, unless exactly one is given.
        """
        given: list[Grammar] = []
        if self.json_ is not None:
            given.append(json_schema_grammar(self.json_))
        if self.json_object:
            given.append(Grammar(kind=GrammarKind.JSON_OBJECT))
        if self.regex is not None:
            given.append(regex_grammar(self.regex))
        if self.choice is not None:
            given.append(choice_grammar(self.choice))
        if len(given) != 1:
            raise InvalidInput(
                f"structured_outputs names {len(given)} forms of an answer.",
                code="invalid_parameter",
                remedy="Give exactly one of json, json_object, regex and choice.",
                place="structured_outputs",
            )
        return given[0]
