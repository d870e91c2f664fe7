"""Which modules an `adapter_config.json` names, by PEFT's rules.

The tensors say which modules were trained; the config says which PEFT wraps when it loads them, and tensors of a module
that it does not wrap are left out there. Here every factor of the file counts. Where the two differ, the adapter is not
the one that PEFT would run, and that is said.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from typing import cast

from hilora.finding import Finding, Severity
from hilora.module_pattern import is_simple
from hilora.peft_tensors import is_targeted

_ALL_LINEAR = "all-linear"
_ANY_LAYER = r".*?\.[^.]*\.(?P<layer>\d+)\."
_PLAIN_NAME = re.compile(r"[\w.]{1,64}")
_MAX_NAMED = 5
_MAX_LAYER_PATTERNS = 16
"""Each is tried with every module."""
_MAX_SECONDS = 5.0
"""Of one adapter's matching in all, as in `module_pattern`."""


class TargetRule:
    """PEFT's choice of modules, as far as a config from a stranger can be followed safely.

    Args:
        config: the content of `adapter_config.json`, already found to be well-formed.
    """

    def __init__(self, config: Mapping[str, object]) -> None:
        self._targets = _choice(config.get("target_modules"))
        self._excluded = _choice(config.get("exclude_modules"))
        self._layers = _numbers(config.get("layers_to_transform"))
        patterns = _strings(config.get("layers_pattern"))
        self._layer_expressions = [rf"(?:^|.*?\.){pattern}\.(?P<layer>\d+)\." for pattern in patterns] or [_ANY_LAYER]
        self._seconds_left = _MAX_SECONDS
        self._parameters = frozenset(_strings(config.get("target_parameters")))
        expressions = [item for item in (self._targets, self._excluded) if isinstance(item, str)]
        # What cannot be followed is not judged: an expression may be long, a wildcard needs the whole model.
        self._can_judge = (
            config.get("target_modules") is not None
            and self._targets != _ALL_LINEAR
            and all(is_simple(expression) for expression in expressions)
            and len(patterns) <= _MAX_LAYER_PATTERNS
            and all(_PLAIN_NAME.fullmatch(pattern) for pattern in patterns)
        )

    def leaves_out(self, module_path: str) -> bool:
        """Whether PEFT would certainly not wrap a module; False where that cannot be told.

        Args:
            module_path: as PEFT sees it, or a parameter's path.
        """
        if not self._can_judge or self._seconds_left <= 0.0:
            return False
        started = time.thread_time()
        is_left_out = self._is_left_out(module_path)
        self._seconds_left -= time.thread_time() - started
        return is_left_out

    def _is_left_out(self, module_path: str) -> bool:
        if is_targeted(f"{module_path}.weight", self._parameters):
            return False
        if _names(self._excluded, module_path):
            return True
        return not (_names(self._targets, module_path) and self._has_layer_of(module_path))

    def _has_layer_of(self, module_path: str) -> bool:
        if self._layers is None or isinstance(self._targets, str):
            return True
        for expression in self._layer_expressions:
            match = _matched(expression, module_path, is_whole=False)
            if match is not None:
                return int(match["layer"]) in self._layers
        return False


def find_untargeted(config: Mapping[str, object], module_paths: Iterable[str]) -> Finding | None:
    """Factors of modules that the config does not name.

    Args:
        config: the content of `adapter_config.json`.
        module_paths: of the file's factors; experts one by one are left to `target_parameters`.
    """
    rule = TargetRule(config)
    left_out = [path for path in module_paths if ".experts." not in path and rule.leaves_out(path)]
    if not left_out:
        return None
    rest = f" and {len(left_out) - _MAX_NAMED} more" if len(left_out) > _MAX_NAMED else ""
    return Finding(
        code="untargeted_modules",
        severity=Severity.WARNING,
        place="target_modules",
        message=f"The weights hold factors of {', '.join(path[:120] for path in left_out[:_MAX_NAMED])}{rest}, which "
        "adapter_config.json does not target: PEFT leaves them out, here they count.",
        remedy="Upload config and weights of one checkpoint, or name these modules in target_modules.",
    )


def _choice(value: object) -> str | frozenset[str]:
    """An expression, or a set of names."""
    return value if isinstance(value, str) and value else frozenset(_strings(value))


def _names(choice: str | frozenset[str], module_path: str) -> bool:
    """Whether names or an expression cover a module."""
    if isinstance(choice, str):
        return _matched(choice, module_path, is_whole=True) is not None
    return is_targeted(module_path, choice)


def _matched(expression: str, module_path: str, *, is_whole: bool) -> re.Match[str] | None:
    try:
        compiled = re.compile(expression)
    except (re.error, OverflowError):
        return None
    return compiled.fullmatch(module_path) if is_whole else compiled.match(module_path)


def _strings(value: object) -> tuple[str, ...]:
    items = cast("list[object]", value) if isinstance(value, list | tuple) else [value]
    return tuple(item for item in items if isinstance(item, str) and item)


def _numbers(value: object) -> frozenset[int] | None:
    """The layers that are named; None where none are, which means all."""
    items = cast("list[object]", value) if isinstance(value, list) else [value]
    return frozenset(item for item in items if isinstance(item, int)) or None
