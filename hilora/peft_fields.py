"""Every field that PEFT, and the trainers around it, write into an `adapter_config.json`, by what it means for us.

A field is read, known to leave the arithmetic alone, or refused by name. The last kind is harmless while it is switched
off, which is how PEFT writes the features of its current version into every config.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

READ = frozenset(
    {
        "alpha_pattern",
        "base_model_name_or_path",
        "bias",
        "exclude_modules",
        "fan_in_fan_out",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
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
        # Where it comes from.
        "auto_mapping",
        "peft_version",
        "revision",
        # Parameters of features that are off: the switch itself is checked.
        "megatron_core",
        "merge_weights",
        "qalora_group_size",
    }
)
_WITHOUT_EFFECT_PREFIX = "unsloth_"
"""Marks that Unsloth leaves; it computes plain LoRA."""

_PLAIN = "Train a plain LoRA"
_MERGED = (
    "serve the result of PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder) "
    "as a base of its own"
)
REFUSED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "use_dora": (
            "DoRA rescales the base weight, so that its update is no sum of rank-one terms",
            f"Train with LoraConfig(use_dora=False), or {_MERGED}.",
        ),
        "use_qalora": ("QA-LoRA pools the inputs in groups", "Train with LoraConfig(use_qalora=False)."),
        "use_bdlora": ("BD-LoRA factors are block-diagonal", f"{_PLAIN}: LoraConfig(use_bdlora=None)."),
        "modules_to_save": (
            "it replaces whole modules of the base",
            f"Train with LoraConfig(modules_to_save=None), naming the modules in target_modules; or {_MERGED}.",
        ),
        "lora_bias": ("it adds a bias beside the low-rank update", "Train with LoraConfig(lora_bias=False)."),
        "alora_invocation_tokens": (
            "an activated LoRA acts only after its invocation tokens",
            "Train with LoraConfig(alora_invocation_tokens=None).",
        ),
        "layer_replication": (
            "it changes the number of layers",
            f"Train with LoraConfig(layer_replication=None), or {_MERGED}.",
        ),
        "trainable_token_indices": (
            "it replaces rows of the embedding",
            "Train with LoraConfig(trainable_token_indices=None) and embed_tokens among target_modules.",
        ),
        "velora_config": (
            "VeLoRA stores state of its own beside the factors",
            f"{_PLAIN}: LoraConfig(velora_config=None).",
        ),
        "monteclora_config": ("MonteCLoRA samples its factors", f"{_PLAIN}: LoraConfig(monteclora_config=None)."),
        "kasa_config": ("KaSA truncates the base weight", f"{_PLAIN}, or {_MERGED}."),
        "arrow_config": (
            "Arrow is a mixture of other adapters",
            "Register those adapters one by one: requests are routed here, by Arrow too (gate rule `arrow`).",
        ),
        "megatron_config": (
            "it is meant for Megatron's parallel layers",
            "Export it for transformers' layers and save it by PEFT's save_pretrained.",
        ),
        "ensure_weight_tying": (
            "it ties the factors of two modules",
            "Train with LoraConfig(ensure_weight_tying=False).",
        ),
        "enable_lora": (
            "a merged linear updates only some of its outputs",
            "Load it with PEFT 0.5 or later and save it again by save_pretrained.",
        ),
    }
)
"""Field -> what is wrong with it, and what to do."""

INITS_KEEPING_THE_BASE = frozenset({"true", "false", "gaussian", "eva", "orthogonal", "mica"})
INITS_CHANGING_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_INITS_WITHOUT_CONVERSION = ("loftq",)


def is_known(field: str) -> bool:
    """Whether a field is read, or leaves the arithmetic alone."""
    return field in READ or field in _WITHOUT_EFFECT or field.startswith(_WITHOUT_EFFECT_PREFIX)


def is_off(value: object) -> bool:
    """Whether a refused feature is switched off: an empty object switches it on with its defaults."""
    return value is None or value is False or value == []


def remedy_for_init(name: str) -> str:
    """How to get a plain LoRA out of one whose initialisation moved a part of the base."""
    if name.startswith(_INITS_WITHOUT_CONVERSION):
        return "Serve the base that LoftQ wrote, whose residual the adapter belongs to, as a base of its own."
    return (
        'Convert it when saving: keep the untrained adapter (model.save_pretrained("init")) and call '
        'model.save_pretrained(folder, path_initial_model_for_weight_conversion="init") after training, '
        "which writes a plain LoRA for the untouched base."
    )
