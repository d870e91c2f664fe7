"""A transformers model under a routing plan: HiLoRA's arithmetic without the serving engine.

Every linear layer that some adapter touches gets a forward hook that adds `sum_j g_j b_j (a_j . x)` over the plan's
candidates, with the gates of `hilora.token_gating`. One prompt at a time, for measuring, not for serving.

Shapes: T tokens, R stacked ROCs of the plan's candidates in one module, D in-features, O out-features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hilora.adapter import DecomposedAdapter, LoRAAdapter, RankOneComponents, RocBasis
from hilora.decomposition import decompose
from hilora.peft_format import read_peft_adapter
from hilora.routing_plan import RocScore, RoutingPlan
from hilora.token_gating import ModuleGate, gate_rocs, module_gate
from hilora_lab.testbed.batches import TokenizedExample
from hilora_lab.testbed.exact_match import is_answered


def read_adapter_folder(folder: Path) -> LoRAAdapter:
    """An adapter's factors from its PEFT files."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return read_peft_adapter(config=config, tensors=load_file(folder / "adapter_model.safetensors"))


@dataclass(frozen=True, kw_only=True, slots=True)
class _ActiveModule:
    a_RD: torch.Tensor
    b_RO: torch.Tensor
    b_norm_R: torch.Tensor
    gate: ModuleGate


class GatedModel:
    """A base model and a pool of adapters, of which each call's plan says what acts.

    Args:
        model: a transformers model; hooks stay on it for its lifetime.
        adapters: factors by adapter name.
    """

    def __init__(self, model: torch.nn.Module, adapters: Mapping[str, LoRAAdapter]) -> None:
        self._model = model
        self._adapters = dict(adapters)
        self._decomposed: dict[tuple[str, RocBasis], DecomposedAdapter] = {}
        self._active: dict[str, _ActiveModule] = {}
        touched = {path for adapter in adapters.values() for path in adapter.modules}
        for path in touched:
            model.get_submodule(path).register_forward_hook(self._hook_of(path))

    def is_answered(self, plan: RoutingPlan, example: TokenizedExample) -> bool:
        """Whether greedy decoding under the plan gives exactly the example's answer."""
        self._activate(plan)
        try:
            return is_answered(self._model, [example])[0]
        finally:
            self._active = {}

    def logits(self, plan: RoutingPlan, input_ids_BT: torch.Tensor) -> torch.Tensor:
        """The model's logits `[B, T, V]` under the plan."""
        self._activate(plan)
        try:
            with torch.no_grad():
                return self._model(input_ids=input_ids_BT, use_cache=False).logits
        finally:
            self._active = {}

    def _activate(self, plan: RoutingPlan) -> None:
        pool = [self._in_basis(budget.adapter_name, plan.gate.basis) for budget in plan.budgets]
        for path in {path for adapter in pool for path in adapter.modules}:
            stacked = [adapter.modules.get(path) for adapter in pool]
            present = [rocs for rocs in stacked if rocs is not None]
            b_RO = torch.cat([rocs.b_RO for rocs in present])
            self._active[path] = _ActiveModule(
                a_RD=torch.cat([rocs.a_RD for rocs in present]),
                b_RO=b_RO,
                b_norm_R=torch.linalg.vector_norm(b_RO, dim=1),
                gate=module_gate(plan, num_rocs=[_size(rocs) for rocs in stacked]),
            )

    def _in_basis(self, adapter_name: str, basis: RocBasis) -> DecomposedAdapter:
        key = (adapter_name, basis)
        if key not in self._decomposed:
            self._decomposed[key] = decompose(self._adapters[adapter_name], basis=basis)
        return self._decomposed[key]

    def _hook_of(self, path: str) -> Any:
        def add_update(
            _module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
        ) -> torch.Tensor:
            active = self._active.get(path)
            if active is None:
                return output
            x_TD = inputs[0].reshape(-1, inputs[0].shape[-1])
            h_TR = x_TD @ active.a_RD.T
            needs_norm = active.gate.score is RocScore.CONTRIBUTION
            g_TR = gate_rocs(h_TR, gate=active.gate, b_norm_R=active.b_norm_R if needs_norm else None)
            return output + ((g_TR * h_TR) @ active.b_RO).reshape(output.shape)

        return add_update


def _size(rocs: RankOneComponents | None) -> int:
    return 0 if rocs is None else rocs.num_rocs
