from __future__ import annotations

import pytest
import torch

from hilora.adapter import LoRAAdapter, LoRAFactors
from hilora.adapter_review import (
    MIN_POOL_FOR_OUTLIERS,
    are_uneven,
    compare_base_names,
    describe_scaling,
    find_dead_components,
    find_few_samples,
    find_norm_outliers,
    find_tied_modules,
)
from hilora.finding import Severity
from tests.builders.adapters import Q_PROJ, random_adapter

POOL = [{"q_proj": 1.0 + 0.05 * idx, "up_proj": 3.0} for idx in range(MIN_POOL_FOR_OUTLIERS)]


class TestBaseNames:
    @pytest.mark.parametrize(
        ("declared", "served"),
        [
            ("meta-llama/Llama-3.1-8B-Instruct", "Llama-3.1-8B-Instruct"),
            ("unsloth/llama-3.1-8b-instruct-bnb-4bit", "meta-llama/Llama-3.1-8B-Instruct"),
            ("unsloth/Llama-3.1-8B-Instruct-unsloth-bnb-4bit", "llama-3.1-8b-instruct"),
            ("/home/me/models/llama_3.1_8b_instruct/", "Llama-3.1-8B-Instruct"),
            ("org/Model-AWQ-INT4", "Model"),
            (None, "anything"),
            ("", "anything"),
        ],
    )
    def test_copies_of_one_base_are_one(self, declared, served):
        assert compare_base_names(declared, served) is None

    @pytest.mark.parametrize("declared", ["org/Llama-3.1-70B", "Llama-3.1-8B-Instruct", "8B"])
    def test_another_base_is_said(self, declared):
        finding = compare_base_names(declared, "Llama-3.1-8B")
        assert (finding.code, finding.severity) == ("base_name_mismatch", Severity.WARNING)
        assert declared in finding.message


class TestNormOutliers:
    def test_what_is_usual_is_not_remarked_on(self):
        assert find_norm_outliers({"q_proj": 1.4, "up_proj": 2.8, "unknown": 9e9}, POOL) == []

    @pytest.mark.parametrize(("norm", "word"), [(60.0, "larger"), (0.01, "smaller")])
    def test_another_size_is_said_with_its_kind(self, norm, word):
        (finding,) = find_norm_outliers({"q_proj": norm, "up_proj": 3.0}, POOL)
        assert (finding.code, finding.place, finding.severity) == ("norm_outlier", "q_proj", Severity.WARNING)
        assert word in finding.message

    def test_a_small_pool_says_nothing(self):
        assert find_norm_outliers({"q_proj": 1e6}, POOL[:-1]) == []

    def test_one_wild_adapter_does_not_hide_the_next(self):
        assert find_norm_outliers({"q_proj": 60.0}, [*POOL, {"q_proj": 1e9}])


class TestOthers:
    def test_dead_components_are_counted_and_named(self):
        factors = random_adapter().modules[Q_PROJ]
        lora_a, lora_b = factors.lora_a.clone(), factors.lora_b.clone()
        lora_a[0], lora_b[:, 2] = 0.0, 0.0
        dead = LoRAFactors(lora_a=lora_a, lora_b=lora_b, scaling=1.0)
        finding = find_dead_components(LoRAAdapter(base_model=None, modules={Q_PROJ: dead, "other": factors}))
        assert finding.code == "dead_components"
        assert "2 of 8" in finding.message and Q_PROJ in finding.message
        assert find_dead_components(random_adapter()) is None

    def test_the_scaling_is_shown_by_value(self):
        factors = random_adapter(scaling=2.0).modules[Q_PROJ]
        other = LoRAFactors(lora_a=factors.lora_a, lora_b=factors.lora_b, scaling=0.25)
        finding = describe_scaling(LoRAAdapter(base_model=None, modules={"a": factors, "b": factors, "c": other}))
        assert finding.severity is Severity.INFO
        assert "2 in 2 modules, 0.25 in 1 modules" in finding.message

    def test_tied_weights_are_said_if_they_are_targeted(self):
        tied = frozenset({"lm_head", "model.embed_tokens"})
        factors = LoRAFactors(lora_a=torch.ones(1, 2), lora_b=torch.ones(2, 1), scaling=1.0)
        assert find_tied_modules(random_adapter(), tied) is None
        finding = find_tied_modules(LoRAAdapter(base_model=None, modules={"lm_head": factors}), tied)
        assert (finding.code, finding.place) == ("tied_weights", "lm_head")

    @pytest.mark.parametrize(("num_samples", "is_said"), [(1, True), (4, True), (5, False), (20, False)])
    def test_few_samples(self, num_samples, is_said):
        assert (find_few_samples(num_samples) is not None) is is_said


@pytest.mark.parametrize(
    ("counts", "is_uneven"), [([], False), ([1], False), ([5, 20], False), ([5, 21, 7], True), ([1, 5], True)]
)
def test_more_than_four_times_as_many_samples_are_uneven(counts, is_uneven):
    assert are_uneven(counts) is is_uneven
