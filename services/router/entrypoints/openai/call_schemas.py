"""JSON schemas of calls: what a grammar makes the model write where it must call, or may call instead of answering."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, cast

from pydantic import Field, JsonValue

from hilora.errors import InvalidInput
from services.router.entrypoints.openai.request_fields import StrictRequest, Text

_MAX_CALLS = 16
"""Calls of one forced answer: a model that likes them would otherwise call until its tokens are used up."""

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")]
"""Name of a function."""


class FunctionBody(StrictRequest):
    """A function that may be called."""

    name: FunctionName
    description: Text | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None


def parameters_of(function: FunctionBody) -> dict[str, Any]:
    """The schema of a function's arguments; an object without any where it says nothing."""
    return dict(function.parameters or {"type": "object", "properties": {}})


def call_list_schema(functions: Sequence[FunctionBody], *, allows_several: bool) -> dict[str, Any]:
    """A list of calls, not empty."""
    parts: dict[str, Any] = {}
    calls = _calls(functions, parts, allows_several=allows_several)
    return calls | ({"$defs": parts} if parts else {})


def calls_or_answer_schema(functions: Sequence[FunctionBody], *, answer: str, allows_several: bool) -> dict[str, Any]:
    """A list of calls, or an answer.

    Args:
        functions: what may be called.
        answer: the answer's own schema, as text; empty for any object.
        allows_several: whether there may be several calls.

    Raises:
        InvalidInput: `invalid_parameter`, where the answer's schema is no JSON.
    """
    parts: dict[str, Any] = {}
    try:
        own = _placed(json.loads(answer) if answer else {"type": "object"}, "answer", parts)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"The schema of the answer cannot be read: {error}.",
            code="invalid_parameter",
            remedy="Send a JSON schema that is not nested so deeply.",
            place="structured_outputs",
        ) from error
    either = {"anyOf": [own, _calls(functions, parts, allows_several=allows_several)]}
    return either | ({"$defs": parts} if parts else {})


def _calls(functions: Sequence[FunctionBody], parts: dict[str, Any], *, allows_several: bool) -> dict[str, Any]:
    """The schema of a list of calls. `parts` gets the schemas that it refers to."""
    items = [
        {
            "type": "object",
            "properties": {
                "name": {"const": function.name},
                "arguments": _placed(parameters_of(function), f"arguments_{place}", parts),
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for place, function in enumerate(functions)
    ]
    return {
        "type": "array",
        "items": {"anyOf": items},
        "minItems": 1,
        "maxItems": _MAX_CALLS if allows_several else 1,
    }


def _placed(schema: Any, name: str, parts: dict[str, Any]) -> Any:
    """A schema inside a larger one. If it refers to parts of itself, it goes to `$defs` and its references after it."""
    moved, has_moved = _moved(schema, f"#/$defs/{name}")
    if not has_moved:
        return schema
    parts[name] = moved
    return {"$ref": f"#/$defs/{name}"}


def _moved(schema: Any, to: str) -> tuple[Any, bool]:
    """A schema whose references to itself point to its new place, and whether there are any."""
    if isinstance(schema, list):
        moved = [_moved(item, to) for item in cast("list[Any]", schema)]
        return [item for item, _ in moved], any(has_moved for _, has_moved in moved)
    if not isinstance(schema, dict):
        return schema, False
    found: dict[str, Any] = {}
    has_any = False
    for key, value in cast("dict[str, Any]", schema).items():
        if key == "$ref" and isinstance(value, str) and value.startswith("#"):
            found[key], has_moved = to + value[1:], True
        else:
            found[key], has_moved = _moved(value, to)
        has_any = has_any or has_moved
    return found, has_any
