"""What an `adapter_config.json` says, and which of it we can serve.

The rule for everything PEFT can write there: a field is read, known to leave the arithmetic alone, or refused by name
(`peft_fields` has the lists). A field we have never heard of is refused too, unless it is empty: newer versions of PEFT
write their new features into every config, switched off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from hilora.errors import InvalidAdapter, UnsupportedAdapterFeature
from hilora.finding import Refuse, raise_at_once
from hilora.peft_fields import (
    INITS_CHANGING_THE_BASE,
    INITS_KEEPING_THE_BASE,
    REFUSED,
    is_known,
    is_off,
    remedy_for_init,
)

_MAX_NUMBER = 10**9
"""JSON's integers may have thousands of digits, more than any arithmetic takes."""


@dataclass(frozen=True, kw_only=True)
class PeftLoraConfig:
    """The fields of a plain LoRA's config that decide its arithmetic, checked."""

    rank: int
    """`r`."""
    alpha: float
    """`lora_alpha`."""
    use_rslora: bool
    """Scaling `alpha / sqrt(r)` instead of `alpha / r`."""
    rank_pattern: Mapping[str, int]
    """Ranks of modules that differ, by pattern."""
    alpha_pattern: Mapping[str, float]
    target_modules: tuple[str, ...]
    """As written, for people; a single expression is one entry."""
    target_parameters: tuple[str, ...]
    """Parameters of experts that are targeted by name, by their whole path or the end of it."""
    base_model: str | None
    task_type: str | None
    fan_in_fan_out: bool
    """Whether the base stores its weights transposed; the factors are `[r, in]` and `[out, r]` either way."""

    def scaling_of(self, *, rank: int, alpha: float) -> float:
        """The factor of `B A` for a module."""
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def parse_peft_config(config: Mapping[str, object], *, refuse: Refuse = raise_at_once) -> PeftLoraConfig:
    """Check the content of an `adapter_config.json`.

    Args:
        config: the JSON object.
        refuse: called with each reason for a refusal; the first is raised by default. Where it returns, what cannot be
            read gets a value of its type.

    Raises:
        UnsupportedAdapterFeature: another PEFT method (`unsupported_peft_type`), an initialisation that changes the
            base (`base_changing_init`), trained biases (`unsupported_bias`) or any other feature that is not a sum of
            rank-one terms (`unsupported_adapter_feature`); `place` is the field.
        InvalidAdapter: `invalid_adapter_config`, for a missing field or a value of the wrong type.
    """
    fields = ConfigFields(config, refuse=refuse)
    _check_type(fields.string("peft_type", "a string such as 'LORA'"), refuse)
    _check_bias(config.get("bias", "none"), refuse)
    _check_init(config.get("init_lora_weights", True), refuse)
    for field, value in config.items():
        _check_feature(field, value, refuse)
    return PeftLoraConfig(
        rank=fields.positive_int("r", config.get("r")),
        alpha=fields.finite_number("lora_alpha", config.get("lora_alpha")),
        use_rslora=fields.boolean("use_rslora"),
        rank_pattern={
            key: fields.positive_int(f"rank_pattern.{key}", value)
            for key, value in fields.mapping("rank_pattern").items()
        },
        alpha_pattern={
            key: fields.finite_number(f"alpha_pattern.{key}", value)
            for key, value in fields.mapping("alpha_pattern").items()
        },
        target_modules=fields.strings("target_modules"),
        target_parameters=fields.strings("target_parameters"),
        base_model=fields.optional_string("base_model_name_or_path"),
        task_type=fields.optional_string("task_type"),
        fan_in_fan_out=fields.boolean("fan_in_fan_out"),
    )


class ConfigFields:
    """The values of a config, each of the type it must have; `invalid_adapter_config` is refused.

    Args:
        config: the JSON object.
        refuse: called with each value that has another type; where it returns, a neutral value takes its place.
    """

    def __init__(self, config: Mapping[str, object], *, refuse: Refuse) -> None:
        self._config = config
        self._refuse = refuse

    def positive_int(self, field: str, value: object) -> int:
        """A number of at least 1, of ordinary size; 1 in place of anything else."""
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < _MAX_NUMBER:
            self.refuse_value(field, value, "a positive integer")
            return 1
        return value

    def finite_number(self, field: str, value: object) -> float:
        """A number of ordinary size; 1.0 in place of anything else."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _MAX_NUMBER:
            self.refuse_value(field, value, "a finite number")
            return 1.0
        return float(value)

    def boolean(self, field: str) -> bool:
        """True or false; null and a missing field are false."""
        value = self._config.get(field)
        if value is not None and not isinstance(value, bool):
            self.refuse_value(field, value, "true or false")
            return False
        return bool(value)

    def optional_string(self, field: str) -> str | None:
        """A string or null."""
        value = self._config.get(field)
        if value is not None and not isinstance(value, str):
            self.refuse_value(field, value, "a string or null")
            return None
        return value

    def string(self, field: str, expected: str) -> str:
        """A string that has to be there; empty in place of anything else."""
        value = self._config.get(field)
        if not isinstance(value, str):
            self.refuse_value(field, value, expected)
            return ""
        return value

    def mapping(self, field: str) -> Mapping[str, object]:
        """An object; null is an empty one."""
        value = self._config.get(field)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self.refuse_value(field, value, "an object")
            return {}
        return cast("Mapping[str, object]", value)

    def strings(self, field: str) -> tuple[str, ...]:
        """A list of strings; a single string is a list of one."""
        value = self._config.get(field)
        if value is None:
            return ()
        if isinstance(value, str):
            return (value,)
        items = cast("list[object]", value) if isinstance(value, list | tuple) else [None]
        if not all(isinstance(item, str) for item in items):
            self.refuse_value(field, value, "a list of strings")
            return ()
        return tuple(cast("list[str]", items))

    def refuse_value(self, field: str, value: object, expected: str) -> None:
        """Refuse one value."""
        self._refuse(
            InvalidAdapter(
                f"{field[:80]} of adapter_config.json must be {expected}, not {repr(value)[:60]}.",
                code="invalid_adapter_config",
                remedy="Save the adapter again with PEFT's save_pretrained.",
                place=field[:80],
            )
        )


def _check_type(peft_type: str, refuse: Refuse) -> None:
    if peft_type and peft_type.upper() != "LORA":
        refuse(
            UnsupportedAdapterFeature(
                f"The adapter is of type {peft_type[:40]!r}; only LORA is a sum of rank-one terms.",
                code="unsupported_peft_type",
                remedy="Convert it to a LoRA, or train one: LoraConfig(r=16).",
                place="peft_type",
            )
        )


def _check_feature(field: str, value: object, refuse: Refuse) -> None:
    if is_known(field):
        return
    if field in REFUSED:
        if not is_off(value):
            problem, remedy = REFUSED[field]
            refuse(
                UnsupportedAdapterFeature(f"adapter_config.json uses {field}: {problem}.", remedy=remedy, place=field)
            )
        return
    if value:
        refuse(
            UnsupportedAdapterFeature(
                f"adapter_config.json sets {field[:80]!r}, which is not known here and may change what the adapter "
                "computes.",
                code="unknown_config_field",
                remedy="Remove the field if it has no effect on the arithmetic, or save the adapter as a plain LoRA.",
                place=field[:80],
            )
        )


def _check_bias(bias: object, refuse: Refuse) -> None:
    if bias is not None and bias != "none":
        refuse(
            UnsupportedAdapterFeature(
                f"The adapter trains biases (bias={str(bias)[:40]!r}), which are not a low-rank update.",
                code="unsupported_bias",
                remedy="Train with LoraConfig(bias='none').",
                place="bias",
            )
        )


def _check_init(init: object, refuse: Refuse) -> None:
    if init is None:
        return
    name = str(init).lower()
    if name in INITS_KEEPING_THE_BASE:
        return
    if name.startswith(INITS_CHANGING_THE_BASE):
        refuse(
            UnsupportedAdapterFeature(
                f"The adapter was initialised by {name[:40]!r}, which moves a part of the base weight into the "
                "adapter.",
                code="base_changing_init",
                remedy=remedy_for_init(name),
                place="init_lora_weights",
            )
        )
        return
    refuse(
        UnsupportedAdapterFeature(
            f"The initialisation {name[:40]!r} is not known here and may have changed the base.",
            code="unknown_init",
            remedy="Set init_lora_weights to true if the base was left untouched.",
            place="init_lora_weights",
        )
    )
