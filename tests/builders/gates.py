"""Learned gates with random tensors, plans that use them, and where they come from in tests: no files, no sockets."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hilora.adapter import DecomposedAdapter, RankOneComponents, RocBasis
from hilora.errors import UnknownAdapter
from hilora.learned_gate import GateTensors, LearnedGate
from hilora.routing_plan import GateParameters, GateRule, RocBudget, RoutingPlan
from tests.builders.patience import patient

ADAPTIVE_RULES = tuple(rule for rule in GateRule if rule is not GateRule.ROCS)
_ROUTER_RANK = 3


def make_gate_tensors(
    rule: GateRule,
    *,
    num_rocs: Mapping[str, int],
    in_features: int,
    out_features: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> GateTensors:
    """One layer's tensors for adapters with so many components each."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    if rule is GateRule.RAMOLE:
        return GateTensors(
            router_a_GD=random(_ROUTER_RANK, in_features), router_b_OG=random(out_features, _ROUTER_RANK)
        )
    if rule is GateRule.PHATGOOSE:
        return GateTensors(gates={adapter_id: random(in_features) + 0.5 for adapter_id in num_rocs})
    gates = {adapter_id: random(size, in_features) for adapter_id, size in num_rocs.items()}
    # One adapter without: biases may be left out.
    biases = {adapter_id: random(size) for adapter_id, size in list(num_rocs.items())[1:]}
    return GateTensors(gates=gates, biases=biases)


def make_gate(
    rule: GateRule, *, ranks: Mapping[str, Mapping[str, int]], shapes: Mapping[str, tuple[int, int]], seed: int = 0
) -> LearnedGate:
    """A gate for a model.

    Args:
        rule: a learned one.
        ranks: components by adapter id and module path.
        shapes: in- and out-features by module path.
        seed: of the tensors.
    """
    modules: dict[str, GateTensors] = {}
    for idx, (path, (num_in, num_out)) in enumerate(shapes.items()):
        num_rocs = {adapter_id: of_modules[path] for adapter_id, of_modules in ranks.items() if of_modules.get(path)}
        if num_rocs:
            modules[path] = make_gate_tensors(
                rule, num_rocs=num_rocs, in_features=num_in, out_features=num_out, seed=1000 * seed + idx
            )
    return LearnedGate(rule=rule, modules=modules)


def make_gate_parameters(rule: GateRule, **changes: Any) -> GateParameters:
    """Parameters of a rule in a basis that it knows, with a gate if it needs one."""
    gate_id = f"{rule.value}-gate@1" if rule.is_learned else None
    basis = rule.required_basis or RocBasis.SVD
    return GateParameters(**{"rule": rule, "basis": basis, "gate_id": gate_id, **changes})


def make_adaptive_plan(rule: GateRule, adapters: Sequence[tuple[str, int, float]], **changes: Any) -> RoutingPlan:
    """A plan from `(adapter_id, lora_rank, weight)` each, with full budgets."""
    return RoutingPlan(
        budgets=tuple(
            RocBudget(adapter_id=adapter_id, adapter_name=adapter_id, lora_rank=rank, num_rocs=rank, weight=weight)
            for adapter_id, rank, weight in adapters
        ),
        gate=make_gate_parameters(rule, **changes),
    )


def in_svd_basis(adapter: DecomposedAdapter, *, dtype: torch.dtype = torch.float64) -> DecomposedAdapter:
    """The same adapter as singular vectors. `decompose` gives float32, whose rounding a comparison in float64 shows."""
    modules: dict[str, RankOneComponents] = {}
    for path, rocs in adapter.modules.items():
        update_OD = rocs.b_RO.double().T @ rocs.a_RD.double()
        u, values, vt = torch.linalg.svd(update_OD, full_matrices=False)
        rank = rocs.num_rocs
        modules[path] = RankOneComponents(
            a_RD=(values[:rank, None] * vt[:rank]).to(dtype), b_RO=u[:, :rank].T.contiguous().to(dtype)
        )
    return DecomposedAdapter(basis=RocBasis.SVD, modules=modules)


class InMemoryGateSource:
    """Gates by id; `may_answer` holds fetches back until it is set."""

    def __init__(self, gates: dict[str, LearnedGate] | None = None) -> None:
        self.gates = dict(gates or {})
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.num_fetches = 0

    def fetch(self, gate_id: str) -> LearnedGate:
        self.num_fetches += 1
        assert self.may_answer.wait(timeout=patient(30))
        if gate_id not in self.gates:
            raise UnknownAdapter(f"No gate {gate_id}.", code="unknown_gate")
        return self.gates[gate_id]
