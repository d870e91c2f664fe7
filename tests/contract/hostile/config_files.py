"""Configs from hell. Code by case, and the content of adapter_config.json."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.builders.archives import config_bytes
from tests.contract.hostile.guard import ACCEPTED


def sets(**changes: object) -> Callable[[], bytes]:
    """An honest config in which some fields are others."""
    return lambda: config_bytes(**changes)


def appends(text: bytes) -> Callable[[], bytes]:
    """An honest config with more bytes before its last brace."""
    return lambda: config_bytes()[:-1] + b", " + text + b"}"


def replaces(field: str, text: bytes) -> Callable[[], bytes]:
    """An honest config in which one value is these bytes."""
    return lambda: config_bytes(**{field: "here"}).replace(b'"here"', text)


MALFORMED = "invalid_adapter_config"
PATTERN = "unsupported_module_pattern"

CONFIGS: dict[str, tuple[str, Callable[[], bytes]]] = {
    # what is no JSON object
    "empty": (MALFORMED, lambda: b""),
    "not JSON": (MALFORMED, lambda: b"{'r': 4}"),
    "cut": (MALFORMED, lambda: config_bytes()[:-20]),
    "a list": (MALFORMED, lambda: b"[]"),
    "YAML": (MALFORMED, lambda: b"!!python/object/apply:os.system ['id']"),
    "a pickle": (MALFORMED, lambda: b"\x80\x04\x95."),
    "UTF-16": (MALFORMED, lambda: json.dumps({"r": 4}).encode("utf-16")),
    "two objects": (MALFORMED, lambda: config_bytes() * 2),
    "larger than any honest one": (MALFORMED, sets(target_modules=["x" * (1 << 20)])),
    "200,000 open brackets": (MALFORMED, lambda: b"[" * 200_000),
    "900 nested lists in a field that is printed": (MALFORMED, replaces("init_lora_weights", b"[" * 900 + b"]" * 900)),
    "300,000 empty lists": (MALFORMED, lambda: b'{"r": [' + b"[]," * 300_000 + b"[]]}"),
    "half a character in the base's name": (MALFORMED, replaces("base_model_name_or_path", rb'"\ud800"')),
    "half a character in a field's name": (MALFORMED, appends(rb'"\udfff": 1')),
    # two readings
    "r twice": (MALFORMED, appends(b'"r": 4')),
    "use_dora twice": (MALFORMED, appends(b'"use_dora": true')),
    "peft_type twice, once escaped": (MALFORMED, appends(rb'"peft\u005ftype": "LOHA"')),
    # numbers
    "alpha.NaN": (MALFORMED, replaces("lora_alpha", b"NaN")),
    "alpha.infinite": (MALFORMED, replaces("lora_alpha", b"-Infinity")),
    "alpha.1e999": (MALFORMED, replaces("lora_alpha", b"1e999")),
    "alpha.10^300": (MALFORMED, sets(lora_alpha=10**300)),
    "alpha.boolean": (MALFORMED, sets(lora_alpha=True)),
    "alpha.text": (MALFORMED, sets(lora_alpha="8")),
    "r.zero": (MALFORMED, sets(r=0)),
    "r.negative": (MALFORMED, sets(r=-4)),
    "r.boolean": (MALFORMED, sets(r=True)),
    "r.float": (MALFORMED, sets(r=4.0)),
    "r.text": (MALFORMED, sets(r="4")),
    "r.missing": (MALFORMED, sets(r=None)),
    "r.10^400": (MALFORMED, sets(r=10**400)),
    "r.5000 digits": (MALFORMED, replaces("r", b"9" * 5000)),
    "r.another": ("rank_mismatch", sets(r=5)),
    "rank_pattern.10^400": (MALFORMED, sets(rank_pattern={"q_proj": 10**400})),
    "rank_pattern.negative": (MALFORMED, sets(rank_pattern={"q_proj": -1})),
    "rank_pattern.boolean": (MALFORMED, sets(rank_pattern={"q_proj": True})),
    "rank_pattern.a list": (MALFORMED, sets(rank_pattern=["q_proj", 4])),
    "alpha_pattern.a text": (MALFORMED, sets(alpha_pattern={"q_proj": "8"})),
    # expressions
    "pattern.(a+)+": (PATTERN, sets(rank_pattern={"(a+)+$": 4})),
    "pattern.(a|a)*": (PATTERN, sets(rank_pattern={"(a|a)*$": 4})),
    "pattern.(.*a){20}": (PATTERN, sets(alpha_pattern={"(.*a){20}": 4})),
    "pattern.back reference": (PATTERN, sets(rank_pattern={r"(.*)\1q": 4})),
    "pattern.look-ahead": (PATTERN, sets(rank_pattern={"(?=(.*))q": 4})),
    "pattern.inline flags": (PATTERN, sets(rank_pattern={"(?i)q_proj": 4})),
    "pattern.many stars": (PATTERN, sets(rank_pattern={".*.*.*.*.*x": 4})),
    "pattern.long": (PATTERN, sets(rank_pattern={"a?" * 300: 4})),
    "pattern.repeated more than 2^32 times": (MALFORMED, sets(rank_pattern={"q{99999999999}": 4})),
    "pattern.unbalanced": (MALFORMED, sets(rank_pattern={"(q": 4})),
    "pattern.75,000 of them": (PATTERN, lambda: config_bytes(rank_pattern={f"a{n}": 1 for n in range(75_000)})),
    "pattern.a million of them": (MALFORMED, lambda: config_bytes(rank_pattern={f"a{n}": 1 for n in range(1_000_000)})),
    "pattern.an expression is not run where it cannot be followed": (ACCEPTED, sets(target_modules="(a+)+$|(.*.*)*x")),
    "pattern.target repeated more than 2^32 times": (ACCEPTED, sets(target_modules="q{99999999999}")),
    "pattern.excluded by a bomb": (ACCEPTED, sets(exclude_modules="(x+x+)+y")),
    "pattern.50,000 names of layers": (
        ACCEPTED,
        lambda: config_bytes(layers_to_transform=[0], layers_pattern=[f"l{n}" for n in range(50_000)]),
    ),
    "pattern.100,000 targets": (ACCEPTED, lambda: config_bytes(target_modules=[f"t{n}" for n in range(100_000)])),
    # code
    "CVE-2026-22807: auto_map": (
        "unknown_config_field",
        sets(auto_map={"AutoModel": "evil/repo--hostile_module.Model"}),
    ),
    "trust_remote_code": ("unknown_config_field", sets(trust_remote_code=True)),
    "CVE-2026-5760: a chat template": ("unknown_config_field", sets(chat_template="{{ ''.__class__.__mro__ }}")),
    "custom modules": ("unknown_config_field", sets(custom_modules={"Linear": "hostile_module.Linear"})),
    "auto_mapping names a module": (
        ACCEPTED,
        sets(auto_mapping={"base_model_class": "Model", "parent_library": "hostile_module"}),
    ),
    "megatron_core names a module": (ACCEPTED, sets(megatron_core="hostile_module")),
    "the base is a path": (ACCEPTED, sets(base_model_name_or_path="../../../etc/passwd")),
    "the base is a URL": (ACCEPTED, sets(base_model_name_or_path="http://169.254.169.254/latest")),
    # methods and features that are no sum of rank-one terms
    "type.unknown": ("unsupported_peft_type", sets(peft_type="EVIL")),
    "type.LOHA": ("unsupported_peft_type", sets(peft_type="LOHA")),
    "type.number": (MALFORMED, sets(peft_type=7)),
    "type.missing": (MALFORMED, sets(peft_type=None)),
    "type.100 KB": ("unsupported_peft_type", sets(peft_type="L" * 100_000)),
    "DoRA": ("unsupported_adapter_feature", sets(use_dora=True)),
    "DoRA by a number": ("unsupported_adapter_feature", sets(use_dora=1)),
    "modules_to_save": ("unsupported_adapter_feature", sets(modules_to_save=["lm_head"])),
    "bias": ("unsupported_bias", sets(bias="all")),
    "PiSSA": ("base_changing_init", sets(init_lora_weights="pissa_niter_4")),
    "an unknown initialisation": ("unknown_init", sets(init_lora_weights={"a": 1})),
    "a field nobody knows": ("unknown_config_field", sets(surprise=[[]])),
}
