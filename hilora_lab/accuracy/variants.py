"""Strategies with departures from their settings, as a text: `hilora:score_rule=gaussian;gamma=0.2`."""

from __future__ import annotations

from dataclasses import fields
from enum import StrEnum
from typing import Any, get_type_hints

from hilora.errors import InvalidInput
from hilora.routing_settings import RoutingSettings
from hilora.strategies import strategy_named

_BOOLEANS = {"true": True, "false": False}


def parse_variant(text: str) -> tuple[str, dict[str, Any]]:
    """The strategy's name, and the fields of its `RoutingSettings` that differ.

    Raises:
        UnknownAdapter: `unknown_strategy`.
        InvalidInput: `invalid_variant`.
    """
    name, _, rest = text.partition(":")
    strategy_named(name)
    return name, dict(_change(text, part) for part in rest.split(";") if part)


def split_variants(text: str) -> tuple[str, ...]:
    """The variants of a list set apart by commas; departures of one are set apart by semicolons."""
    return tuple(one.strip() for one in text.split(",") if one.strip())


def _change(text: str, part: str) -> tuple[str, Any]:
    field, _, value = part.partition("=")
    kinds: dict[str, Any] = get_type_hints(RoutingSettings)
    if field not in {one.name for one in fields(RoutingSettings)}:
        raise _invalid(text, f"{field!r} is no field of the settings")
    kind = kinds[field]
    try:
        if kind is bool:
            return field, _BOOLEANS[value]
        if kind in {int, float} or issubclass(kind, StrEnum):
            return field, kind(value)
    except (KeyError, ValueError) as error:
        raise _invalid(text, f"{field} cannot be {value!r}") from error
    raise _invalid(text, f"{field} cannot be set here")


def _invalid(text: str, reason: str) -> InvalidInput:
    return InvalidInput(
        f"{text[:120]!r} is no strategy with departures: {reason}.",
        code="invalid_variant",
        remedy="Write NAME, or NAME:FIELD=VALUE;FIELD=VALUE with fields of RoutingSettings.",
        place="strategies",
    )
