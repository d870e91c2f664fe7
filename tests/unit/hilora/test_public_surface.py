from __future__ import annotations

import pytest

import hilora

PUBLIC = [
    "AdapterGaussian",
    "AdapterProfile",
    "AdapterTraits",
    "BudgetRule",
    "CandidateScore",
    "CovarianceFamily",
    "DecomposedAdapter",
    "EtaRule",
    "Finding",
    "GateParameters",
    "GateRule",
    "GateScope",
    "GateTensors",
    "HiloraError",
    "ImportedAdapter",
    "LearnedGate",
    "LoRAAdapter",
    "LoRAFactors",
    "ModuleGate",
    "PeftLoraConfig",
    "PlanPreparation",
    "PooledEmpiricalBayes",
    "PooledGaussians",
    "PreparationMethod",
    "RankOneComponents",
    "RocBasis",
    "RocBudget",
    "RocScore",
    "RoutingDecision",
    "RoutingMode",
    "RoutingPlan",
    "RoutingSettings",
    "SequenceRouter",
    "Severity",
    "Squeeze",
    "SqueezedAdapter",
    "UnknownTaskRule",
    "WeightRule",
    "active_rocs_mask",
    "adapter_id_of",
    "base_decision",
    "check_adapter_name",
    "check_against_base",
    "decompose",
    "delta_weight",
    "explicit_decision",
    "fit_gaussian",
    "fit_pooled",
    "fit_pooled_eb",
    "gate_from_tensors",
    "gate_rocs",
    "gate_tensors",
    "import_adapter",
    "module_gate",
    "parse_peft_config",
    "read_peft_adapter",
    "recompose",
    "roc_energies",
    "squeeze",
    "target_features",
    "traits_of",
    "with_base_names",
]


class TestPublicSurface:
    def test_it_changes_on_purpose_only(self):
        assert sorted(hilora.__all__) == sorted(PUBLIC)
        assert dir(hilora) == sorted(PUBLIC)

    @pytest.mark.parametrize("name", PUBLIC)
    def test_every_name_is_there(self, name):
        found = getattr(hilora, name)
        assert found.__name__ == name
        assert found.__doc__

    def test_other_names_are_not(self):
        with pytest.raises(AttributeError, match="no_such_name"):
            getattr(hilora, "no_such_name")  # noqa: B009
