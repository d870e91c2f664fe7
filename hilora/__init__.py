"""HiLoRA: hierarchical, training-free routing over a pool of LoRA adapters (arXiv 2510.12266).

Read bottom-up: `errors`, `adapter`, `routing_plan` are the vocabulary; `peft_format` and `decomposition` turn a
checkpoint into rank-one components; `covariance`, `gaussian`, `pooled_gaussian`, `empirical_bayes` and
`calibration` score texts; `candidate_selection`, `budget_allocation` and `sequence_routing` make a plan of the
scores; `token_gating` applies the plan to tokens, and `reference` does so slowly. `docs/algorithm.md` has the
equations.
"""

from __future__ import annotations

from hilora.adapter import (
    DecomposedAdapter,
    LoRAAdapter,
    LoRAFactors,
    RankOneComponents,
    RocBasis,
    adapter_id_of,
    check_adapter_name,
)
from hilora.decomposition import decompose, delta_weight, recompose, roc_energies
from hilora.empirical_bayes import PooledEmpiricalBayes, fit_pooled_eb
from hilora.errors import HiloraError
from hilora.gaussian import AdapterGaussian, CovarianceFamily, fit_gaussian
from hilora.peft_format import PeftLoraConfig, check_against_base, parse_peft_config, read_peft_adapter
from hilora.pooled_gaussian import PooledGaussians, fit_pooled
from hilora.routing_plan import (
    CandidateScore,
    GateParameters,
    GateScope,
    RocBudget,
    RocScore,
    RoutingDecision,
    RoutingMode,
    RoutingPlan,
)
from hilora.routing_settings import BudgetRule, EtaRule, RoutingSettings, UnknownTaskRule, WeightRule
from hilora.sequence_routing import AdapterProfile, SequenceRouter, base_decision, explicit_decision
from hilora.token_gating import ModuleGate, active_rocs_mask, gate_rocs, gate_rocs_padded, module_gate

__all__ = [
    "AdapterGaussian",
    "AdapterProfile",
    "BudgetRule",
    "CandidateScore",
    "CovarianceFamily",
    "DecomposedAdapter",
    "EtaRule",
    "GateParameters",
    "GateScope",
    "HiloraError",
    "LoRAAdapter",
    "LoRAFactors",
    "ModuleGate",
    "PeftLoraConfig",
    "PooledEmpiricalBayes",
    "PooledGaussians",
    "RankOneComponents",
    "RocBasis",
    "RocBudget",
    "RocScore",
    "RoutingDecision",
    "RoutingMode",
    "RoutingPlan",
    "RoutingSettings",
    "SequenceRouter",
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
    "gate_rocs",
    "gate_rocs_padded",
    "module_gate",
    "parse_peft_config",
    "read_peft_adapter",
    "recompose",
    "roc_energies",
]
