"""What an `adapter_config.json` says, and which of it we can serve.

The rule for everything PEFT can write there: a field is read, known to leave the arithmetic alone, or refused by
name. A field we have never heard of is refused too, unless it is empty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NoReturn, cast

from hilora.errors import InvalidAdapter, UnsupportedAdapterFeature

_READ = frozenset(
    {
        "alpha_pattern",
        "base_model_name_or_path",
        "fan_in_fan_out",
        "init_lora_weights",
        "lora_alpha",
        "peft_type",
        "r",
        "rank_pattern",
        "target_modules",
        "target_parameters",
        "task_type",
        "use_rslora",
    }
)

_WITHOUT_EFFECT = frozenset(
    {
        # How it was trained, or how its first values were found; `init_lora_weights` itself is read.
        "corda_config",
        "eva_config",
        "inference_mode",
        "lora_dropout",
        "lora_ga_config",
        "loftq_config",
        "runtime_config",
        # Which modules were wrapped: the tensors say so themselves.
        "exclude_modules",
        "layers_pattern",
        "layers_to_transform",
        # Where it comes from.
        "auto_mapping",
        "peft_version",
        "revision",
        # Parameters of features that are off: the switch itself is checked.
        "megatron_core",
        "merge_weights",
        "qalora_group_size",
        "unsloth_fixed",
    }
)

_SAVE_WITHOUT = "Train or convert it as a plain LoRA"
_REFUSED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "use_dora": ("DoRA rescales the base weight", "Merge it into its base, or train a plain LoRA."),
        "use_qalora": ("QA-LoRA pools the inputs in groups", f"{_SAVE_WITHOUT}."),
        "use_bdlora": ("BD-LoRA factors are block-diagonal", f"Expand the blocks: {_SAVE_WITHOUT.lower()}."),
        "modules_to_save": (
            "it replaces whole modules of the base",
            "Train without modules_to_save, or serve the merged model as a base of its own.",
        ),
        "lora_bias": ("it adds a bias beside the low-rank update", "Train with lora_bias=False."),
        "alora_invocation_tokens": (
            "an activated LoRA acts only after its invocation tokens",
            "Train with alora_invocation_tokens=None.",
        ),
        "layer_replication": ("it changes the number of layers", "Serve the deepened model as a base of its own."),
        "trainable_token_indices": ("it replaces rows of the embedding", "Train with trainable_token_indices=None."),
        "velora_config": ("VeLoRA stores state of its own beside the factors", f"{_SAVE_WITHOUT}."),
        "monteclora_config": ("MonteCLoRA samples its factors", f"{_SAVE_WITHOUT}."),
        "kasa_config": ("KaSA truncates the base weight", f"{_SAVE_WITHOUT}."),
        "arrow_config": ("Arrow is a mixture of other adapters", "Register those adapters: routing is done here."),
        "megatron_config": ("it is meant for Megatron's parallel layers", "Export it for transformers layers."),
        "ensure_weight_tying": ("it ties the factors of two modules", "Train with ensure_weight_tying=False."),
        "enable_lora": ("a merged linear updates only some of its outputs", "Save it with a current PEFT."),
    }
)
"""Field -> what is wrong with it, and what to do."""

_INITS_KEEPING_THE_BASE = frozenset({"true", "false", "gaussian", "eva", "orthogonal", "mica"})
_INITS_CHANGING_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


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


def parse_peft_config(config: Mapping[str, object]) -> PeftLoraConfig:
    """Check the content of an `adapter_config.json`.

    Args:
        config: the JSON object.

    Raises:
        UnsupportedAdapterFeature: another PEFT method (`unsupported_peft_type`), an initialisation that changes the
            base (`base_changing_init`), trained biases (`unsupported_bias`) or any other feature that is not a sum of
            rank-one terms (`unsupported_adapter_feature`); `place` is the field.
        InvalidAdapter: `invalid_adapter_config`, for a missing field or a value of the wrong type.
    """
    peft_type = config.get("peft_type")
    if not isinstance(peft_type, str):
        _malformed("peft_type", peft_type, "a string such as 'LORA'")
    if peft_type.upper() != "LORA":
        raise UnsupportedAdapterFeature(
            f"The adapter is of type {peft_type[:40]!r}; only LORA is a sum of rank-one terms.",
            code="unsupported_peft_type",
            remedy="Convert it to a LoRA, or train one.",
            place="peft_type",
        )
    _refuse_bias(config.get("bias", "none"))
    _refuse_base_changing_init(config.get("init_lora_weights", True))
    for field, value in config.items():
        _refuse_unsupported(field, value)
    return PeftLoraConfig(
        rank=_positive_int("r", config.get("r")),
        alpha=_finite_number("lora_alpha", config.get("lora_alpha")),
        use_rslora=_boolean("use_rslora", config.get("use_rslora")),
        rank_pattern={
            key: _positive_int(f"rank_pattern.{key}", value) for key, value in _mapping("rank_pattern", config).items()
        },
        alpha_pattern={
            key: _finite_number(f"alpha_pattern.{key}", value)
            for key, value in _mapping("alpha_pattern", config).items()
        },
        target_modules=_strings("target_modules", config.get("target_modules")),
        target_parameters=_strings("target_parameters", config.get("target_parameters")),
        base_model=_optional_string("base_model_name_or_path", config.get("base_model_name_or_path")),
        task_type=_optional_string("task_type", config.get("task_type")),
        fan_in_fan_out=_boolean("fan_in_fan_out", config.get("fan_in_fan_out")),
    )


def _refuse_unsupported(field: str, value: object) -> None:
    if field in _READ or field in _WITHOUT_EFFECT or field == "bias":
        return
    if field in _REFUSED:
        # Null, false and an empty list switch a feature off; an empty object switches it on with its defaults.
        if value is None or value is False or value == []:
            return
        problem, remedy = _REFUSED[field]
        raise UnsupportedAdapterFeature(f"adapter_config.json uses {field}: {problem}.", remedy=remedy, place=field)
    if not value:
        return
    raise UnsupportedAdapterFeature(
        f"adapter_config.json sets {field[:80]!r}, which is not known here and may change what the adapter computes.",
        code="unknown_config_field",
        remedy="Remove the field if it has no effect on the arithmetic, or save the adapter as a plain LoRA.",
        place=field[:80],
    )


def _refuse_bias(bias: object) -> None:
    if bias is not None and bias != "none":
        raise UnsupportedAdapterFeature(
            f"The adapter trains biases (bias={str(bias)[:40]!r}), which are not a low-rank update.",
            code="unsupported_bias",
            remedy="Train with bias='none'.",
            place="bias",
        )


def _refuse_base_changing_init(init: object) -> None:
    if init is None:
        return
    name = str(init).lower()
    if name in _INITS_KEEPING_THE_BASE:
        return
    if name.startswith(_INITS_CHANGING_THE_BASE):
        raise UnsupportedAdapterFeature(
            f"The adapter was initialised by {name[:40]!r}, which moves a part of the base weight into the adapter.",
            code="base_changing_init",
            remedy=(
                "Convert it when saving: PEFT's save_pretrained with path_initial_model_for_weight_conversion "
                "writes a plain LoRA for the untouched base."
            ),
            place="init_lora_weights",
        )
    raise UnsupportedAdapterFeature(
        f"The initialisation {name[:40]!r} is not known here and may have changed the base.",
        code="unknown_init",
        remedy="Set init_lora_weights to true if the base was left untouched.",
        place="init_lora_weights",
    )


def _malformed(field: str, value: object, expected: str) -> NoReturn:
    raise InvalidAdapter(
        f"{field[:80]} of adapter_config.json must be {expected}, not {repr(value)[:60]}.",
        code="invalid_adapter_config",
        remedy="Save the adapter again with PEFT's save_pretrained.",
        place=field[:80],
    )


def _positive_int(field: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        _malformed(field, value, "a positive integer")
    return value


def _finite_number(field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        _malformed(field, value, "a finite number")
    return float(value)


def _boolean(field: str, value: object) -> bool:
    if value is not None and not isinstance(value, bool):
        _malformed(field, value, "true or false")
    return bool(value)


def _optional_string(field: str, value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        _malformed(field, value, "a string or null")
    return value


def _mapping(field: str, config: Mapping[str, object]) -> Mapping[str, object]:
    value = config.get(field)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        _malformed(field, value, "an object")
    return cast("Mapping[str, object]", value)


def _strings(field: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in cast("list[object]", value)):
        _malformed(field, value, "a list of strings")
    return tuple(cast("list[str]", value))
