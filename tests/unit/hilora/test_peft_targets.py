from __future__ import annotations

import peft
import pytest
from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists

from hilora.finding import Severity
from hilora.importers import import_adapter
from hilora.peft_targets import TargetRule, find_untargeted
from tests.builders.adapters import Q_PROJ, peft_config, peft_tensors, random_adapter

PATHS = [
    f"model.layers.{layer}.{name}"
    for layer in range(12)
    for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.experts.3.up_proj")
] + ["lm_head", "model.embed_tokens", "my_q_proj", "encoder.block.2.q_proj"]

RULES = {
    "names": {"target_modules": ["q_proj", "lm_head"]},
    "whole paths": {"target_modules": ["model.layers.1.self_attn.q_proj"]},
    "expression": {"target_modules": r".*\.(q|v)_proj"},
    "expression of a layer": {"target_modules": r"model\.layers\.1\d?\.mlp\.up_proj"},
    "excluded names": {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["self_attn.q_proj"]},
    "excluded expression": {"target_modules": ["q_proj", "up_proj"], "exclude_modules": r".*layers\.[0-4]\..*"},
    "one layer": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": 3},
    "listed layers": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [0, 3, 11]},
    "layers of a name": {"target_modules": ["q_proj"], "layers_to_transform": [2], "layers_pattern": "block"},
    "layers of names": {
        "target_modules": ["q_proj"],
        "layers_to_transform": [2],
        "layers_pattern": ["block", "layers"],
    },
    "no layers": {"target_modules": ["q_proj"], "layers_to_transform": []},
}


class TestAgainstPeft:
    @pytest.mark.parametrize("rule", RULES)
    def test_the_same_modules_are_chosen(self, rule):
        config = peft.LoraConfig(**RULES[rule])
        ours = TargetRule(RULES[rule])
        for path in PATHS:
            chosen = check_target_module_exists(config, path)
            is_chosen = bool(chosen) and not isinstance(chosen, _ExcludedModule)
            assert ours.leaves_out(path) is not is_chosen, path


class TestWhatIsNotJudged:
    @pytest.mark.parametrize(
        "config",
        [
            {"target_modules": "all-linear"},
            {"target_modules": None},
            {"target_modules": r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|v_proj).*?)+"},
            {"target_modules": ["x"], "exclude_modules": "(a+)+"},
            {"target_modules": [], "target_parameters": ["lm_head.weight"]},
        ],
    )
    def test_nothing_is_said(self, config):
        assert find_untargeted(config, ["lm_head"]) is None


class TestFinding:
    def test_factors_that_peft_would_leave_out_are_named(self):
        config = peft_config(target_modules=["up_proj", "down_proj"])
        (finding,) = import_adapter(config=config, tensors=peft_tensors(random_adapter())).notes
        assert (finding.code, finding.severity) == ("untargeted_modules", Severity.WARNING)
        assert Q_PROJ in finding.message
