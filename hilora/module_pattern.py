"""Patterns for module names, as PEFT matches them, from files nobody vouches for.

`rank_pattern` and `alpha_pattern` of an adapter's config map regular expressions to numbers. A pattern applies to a
module when it matches the module's whole path or everything after one of its dots; the first pattern that matches
decides. PEFT sorts the patterns when it saves, so that need not be the first one of the training script: like PEFT,
we go by the file. An expression from a stranger can take exponential time, so only simple ones are run.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from typing import TypeVar

from hilora.errors import InvalidAdapter, UnsupportedAdapterFeature
from hilora.finding import Refuse, raise_at_once

_MAX_LENGTH = 512
_MAX_UNBOUNDED = 2
_MAX_GROUPS = 3
_MAX_ALTERNATIVES = 128
_MAX_PATTERNS = 10_000
"""Compiling one takes 0.1 ms; no adapter has so many modules whose ranks differ."""
_MAX_SECONDS = 5.0
"""Of one adapter's matching in all; honest configs take milliseconds."""

_ESCAPE = re.compile(r"\\.")
_CHARACTER_CLASS = re.compile(r"\[[^\]]*\]")

Value = TypeVar("Value")


class ModulePatterns:
    """Patterns in the order of the file, compiled once.

    Args:
        patterns: the expressions.
        place: the config field they come from, for errors.
        refuse: called with each reason for a refusal; where it returns, the pattern is left out.

    Raises:
        InvalidAdapter: `invalid_adapter_config`, for what is no regular expression.
        UnsupportedAdapterFeature: `unsupported_module_pattern`, for an expression that could take very long.
    """

    def __init__(self, patterns: Iterable[str], *, place: str, refuse: Refuse = raise_at_once) -> None:
        listed = list(patterns)
        if len(listed) > _MAX_PATTERNS:
            refuse(_too_many(place, len(listed)))
        compiled = ((pattern, _compile(pattern, place=place, refuse=refuse)) for pattern in listed[:_MAX_PATTERNS])
        self._compiled = [(pattern, expression) for pattern, expression in compiled if expression is not None]
        self._place = place
        self._refuse = refuse
        self._seconds_left = _MAX_SECONDS

    def matching(self, module_path: str) -> str | None:
        """The first pattern that applies to a module.

        Raises:
            UnsupportedAdapterFeature: `unsupported_module_pattern`, once all calls together took too long: each match
                is cheap, but a config may hold as many patterns as its weights have modules.
        """
        for pattern, compiled in self._compiled:
            if self._seconds_left <= 0.0:
                return None
            started = time.thread_time()
            is_found = compiled.match(module_path) is not None
            self._seconds_left -= time.thread_time() - started
            if self._seconds_left <= 0.0:
                self._refuse(_too_slow(self._place, len(self._compiled)))
            if is_found:
                return pattern
        return None


def value_for(module_path: str, *, patterns: ModulePatterns, values: Mapping[str, Value], default: Value) -> Value:
    """The value of the first pattern that applies, or the default."""
    return values.get(patterns.matching(module_path) or module_path, default)


def _too_slow(place: str, num_patterns: int) -> UnsupportedAdapterFeature:
    return UnsupportedAdapterFeature(
        f"The {num_patterns} patterns of {place} take more than {_MAX_SECONDS:g} seconds to match with the adapter's "
        "modules.",
        code="unsupported_module_pattern",
        remedy="Replace them by few patterns that cover many modules each.",
        place=place,
    )


def _too_many(place: str, num_patterns: int) -> UnsupportedAdapterFeature:
    return UnsupportedAdapterFeature(
        f"{place} holds {num_patterns} patterns; the limit is {_MAX_PATTERNS}.",
        code="unsupported_module_pattern",
        remedy="Replace them by few patterns that cover many modules each.",
        place=place,
    )


def _compile(pattern: str, *, place: str, refuse: Refuse) -> re.Pattern[str] | None:
    if not is_simple(pattern):
        refuse(
            UnsupportedAdapterFeature(
                f"The pattern {pattern[:80]!r} is too involved to be matched safely.",
                code="unsupported_module_pattern",
                remedy="Write the module names out, one entry each.",
                place=place,
            )
        )
        return None
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, OverflowError) as error:  # the latter of a repetition count beyond 32 bits
        refuse(
            InvalidAdapter(
                f"The pattern {pattern[:80]!r} is no regular expression: {error}.",
                code="invalid_adapter_config",
                remedy="Correct the pattern in adapter_config.json.",
                place=place,
            )
        )
        return None


def is_simple(pattern: str) -> bool:
    """Whether matching is certain to take few steps.

    Time explodes where a repetition stands inside a repetition or many alternatives follow one another; neither can
    be written with a handful of operators and no repeated group.
    """
    if len(pattern) > _MAX_LENGTH or re.search(r"\\[1-9]", pattern):
        return False
    bare = _CHARACTER_CLASS.sub("x", _ESCAPE.sub("x", pattern)).replace("(?:", "(")
    if "(?" in bare or re.search(r"\)[*+?{]", bare):
        return False
    return (
        sum(bare.count(operator) for operator in "*+?{") <= _MAX_UNBOUNDED
        and bare.count("(") <= _MAX_GROUPS
        and bare.count("|") <= _MAX_ALTERNATIVES
    )
