"""HiLoRA: hierarchical, training-free routing over a pool of LoRA adapters (arXiv 2510.12266).

Read bottom-up: `errors`, `finding`, `adapter`, `routing_plan` are the vocabulary; `peft_format`, `importers`,
`compression` and `decomposition` turn a checkpoint into rank-one components, `fingerprint` and `adapter_review` say
what is worth knowing about them, and `target_layer` says where a model can take them; `covariance`, `gaussian`,
`pooled_gaussian`, `empirical_bayes` and `calibration` score texts; `candidate_selection`, `budget_allocation` and
`sequence_routing` make a plan of the scores; `token_gating` applies the plan to tokens, `adaptive_gating` and
`learned_gate` are the rules by which tokens choose among adapters; `reference` and `reference_adaptive` do so slowly;
`merging` and `plan_preparation` are what a worker does before the first token, where a plan wants it.
`access` says who may use an adapter, `version_selector` which version of it a text means.
`docs/algorithm.md` has the equations.

The names below are imported when they are used: `hilora.errors` alone must not cost the start of torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hilora.adapter import (
        DecomposedAdapter,
        LoRAAdapter,
        LoRAFactors,
        RankOneComponents,
        RocBasis,
        adapter_id_of,
        check_adapter_name,
    )
    from hilora.compression import Squeeze, SqueezedAdapter, squeeze
    from hilora.decomposition import decompose, delta_weight, recompose, roc_energies
    from hilora.empirical_bayes import PooledEmpiricalBayes, fit_pooled_eb
    from hilora.errors import HiloraError
    from hilora.finding import Finding, Severity
    from hilora.fingerprint import AdapterTraits, traits_of
    from hilora.gaussian import AdapterGaussian, CovarianceFamily, fit_gaussian
    from hilora.importers import ImportedAdapter, import_adapter
    from hilora.learned_gate import GateTensors, LearnedGate, gate_from_tensors, gate_tensors
    from hilora.peft_format import (
        PeftLoraConfig,
        check_against_base,
        parse_peft_config,
        read_peft_adapter,
        with_base_names,
    )
    from hilora.pooled_gaussian import PooledGaussians, fit_pooled
    from hilora.routing_plan import (
        CandidateScore,
        GateParameters,
        GateRule,
        GateScope,
        PlanPreparation,
        PreparationMethod,
        RocBudget,
        RocScore,
        RoutingDecision,
        RoutingMode,
        RoutingPlan,
    )
    from hilora.routing_settings import BudgetRule, EtaRule, RoutingSettings, UnknownTaskRule, WeightRule
    from hilora.sequence_routing import AdapterProfile, SequenceRouter, base_decision, explicit_decision
    from hilora.target_layer import target_features
    from hilora.token_gating import ModuleGate, active_rocs_mask, gate_rocs, module_gate

__all__ = [
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

_NAMES_OF_MODULE = {
    "adapter": (
        "DecomposedAdapter",
        "LoRAAdapter",
        "LoRAFactors",
        "RankOneComponents",
        "RocBasis",
        "adapter_id_of",
        "check_adapter_name",
    ),
    "compression": (
        "Squeeze",
        "SqueezedAdapter",
        "squeeze",
    ),
    "decomposition": (
        "decompose",
        "delta_weight",
        "recompose",
        "roc_energies",
    ),
    "empirical_bayes": (
        "PooledEmpiricalBayes",
        "fit_pooled_eb",
    ),
    "errors": ("HiloraError",),
    "finding": (
        "Finding",
        "Severity",
    ),
    "fingerprint": (
        "AdapterTraits",
        "traits_of",
    ),
    "gaussian": (
        "AdapterGaussian",
        "CovarianceFamily",
        "fit_gaussian",
    ),
    "importers": (
        "ImportedAdapter",
        "import_adapter",
    ),
    "learned_gate": (
        "GateTensors",
        "LearnedGate",
        "gate_from_tensors",
        "gate_tensors",
    ),
    "peft_format": (
        "PeftLoraConfig",
        "check_against_base",
        "parse_peft_config",
        "read_peft_adapter",
        "with_base_names",
    ),
    "pooled_gaussian": (
        "PooledGaussians",
        "fit_pooled",
    ),
    "routing_plan": (
        "CandidateScore",
        "GateParameters",
        "GateRule",
        "GateScope",
        "PlanPreparation",
        "PreparationMethod",
        "RocBudget",
        "RocScore",
        "RoutingDecision",
        "RoutingMode",
        "RoutingPlan",
    ),
    "routing_settings": (
        "BudgetRule",
        "EtaRule",
        "RoutingSettings",
        "UnknownTaskRule",
        "WeightRule",
    ),
    "sequence_routing": (
        "AdapterProfile",
        "SequenceRouter",
        "base_decision",
        "explicit_decision",
    ),
    "target_layer": ("target_features",),
    "token_gating": (
        "ModuleGate",
        "active_rocs_mask",
        "gate_rocs",
        "module_gate",
    ),
}
_MODULE_OF_NAME = {name: module for module, names in _NAMES_OF_MODULE.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module 'hilora' has no attribute {name!r}")
    return getattr(import_module(f"hilora.{_MODULE_OF_NAME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
