"""A transformers model under a routing plan: HiLoRA's arithmetic without the serving engine.

Every linear layer that some adapter touches gets a forward hook that adds `sum_j g_j b_j (a_j . x)` over the plan's
candidates, with the factors of the plan's rule (`module_update`). Under a plan of two phases, what comes before the
prompt's last token has the reading phase's. One prompt at a time, for measuring, not for serving.

Shapes: B prompts, T tokens, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hilora.adapter import DecomposedAdapter, LoRAAdapter, RocBasis
from hilora.decomposition import decompose
from hilora.errors import InvalidInput, UnknownAdapter
from hilora.learned_gate import GateTensors, LearnedGate
from hilora.peft_format import read_peft_adapter
from hilora.plan_preparation import (
    asked_module,
    asked_plan,
    merge_recipe,
    merged_adapter,
    merged_plan,
    reaction,
)
from hilora.routing_plan import RoutingPlan
from hilora_lab.evaluation.module_update import ModuleUpdate
from hilora_lab.testbed.batches import TokenizedExample
from hilora_lab.testbed.exact_match import is_answered


def read_adapter_folder(folder: Path) -> LoRAAdapter:
    """An adapter's factors from its PEFT files."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return read_peft_adapter(config=config, tensors=load_file(folder / "adapter_model.safetensors"))


class GatedModel:
    """A base model and a pool of adapters, of which each call's plan says what acts.

    Args:
        model: a transformers model; hooks stay on it for its lifetime.
        adapters: factors by adapter name.
        gates: learned gates by gate id, for plans whose rule needs one.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        adapters: Mapping[str, LoRAAdapter],
        *,
        gates: Mapping[str, LearnedGate] | None = None,
    ) -> None:
        self._model = model
        self._adapters = dict(adapters)
        self._gates = dict(gates or {})
        self._decomposed: dict[tuple[str, RocBasis], DecomposedAdapter] = {}
        self._active: tuple[dict[str, ModuleUpdate], dict[str, ModuleUpdate]] = ({}, {})
        self._num_read = 0
        self._merged: dict[tuple[str, str], DecomposedAdapter] = {}
        touched = {path for adapter in adapters.values() for path in adapter.modules}
        self._touched = [path for path, _ in model.named_modules() if path in touched]
        for path in touched:
            model.get_submodule(path).register_forward_hook(self._hook_of(path))

    def is_answered(self, plan: RoutingPlan, example: TokenizedExample) -> bool:
        """Whether greedy decoding under the plan gives exactly the example's answer. Errors as in `logits`."""
        plan = self._prepared(plan, torch.tensor([example.prompt_ids]))
        self._activate(plan, num_prompt_tokens=len(example.prompt_ids))
        try:
            return is_answered(self._model, [example])[0]
        finally:
            self._active = ({}, {})

    def logits(
        self, plan: RoutingPlan, input_ids_BT: torch.Tensor, *, num_prompt_tokens: int | None = None
    ) -> torch.Tensor:
        """The model's logits `[B, T, V]` under the plan. One that asks the base first asks about the first row.

        Args:
            plan: what acts.
            input_ids_BT: prompts of one length, with answers or without.
            num_prompt_tokens: of these, the prompts'; all without.

        Raises:
            UnknownAdapter: `unknown_gate`: the plan's learned gate was not given to this model.
            InvalidInput: `gate_rule_mismatch`, `gate_shape_mismatch`: it is one of another rule, or for other layers or
                adapters.
        """
        if num_prompt_tokens is None:
            num_prompt_tokens = input_ids_BT.shape[1]
        self._activate(self._prepared(plan, input_ids_BT), num_prompt_tokens=num_prompt_tokens)
        try:
            with torch.no_grad():
                return self._model(input_ids=input_ids_BT, use_cache=False).logits
        finally:
            self._active = ({}, {})

    def _prepared(self, plan: RoutingPlan, prompt_BT: torch.Tensor) -> RoutingPlan:
        """The plan after what it wants done first with its adapters."""
        if plan.preparation is None or plan.is_base_only:
            return plan
        name_of = {budget.adapter_id: budget.adapter_name for budget in plan.budgets}
        if plan.preparation.method.is_merge:
            recipe = merge_recipe(plan)
            merged = merged_plan(plan, recipe)
            key = (merged.budgets[0].adapter_name, recipe.adapter_id)
            if key not in self._merged:
                sources = [self._in_basis(name_of[source_id], RocBasis.TRAINED) for source_id, _ in recipe.sources]
                self._merged[key] = merged_adapter(recipe, sources)
            self._decomposed[key[0], RocBasis.TRAINED] = self._merged[key]
            return merged
        asked = {adapter_id: self._in_basis(name, plan.gate.basis) for adapter_id, name in name_of.items()}
        path = asked_module(self._touched, list(asked.values()))
        assert path is not None, "a plan that is not base-only touches a layer"
        x_D = self._last_input(path, prompt_BT[:1])
        return asked_plan(plan, {adapter_id: reaction(one.modules.get(path), x_D) for adapter_id, one in asked.items()})

    def _last_input(self, path: str, prompt_BT: torch.Tensor) -> torch.Tensor:
        """What a layer is given at the prompt's last token when the base reads it alone, `[D]`."""
        heard: list[torch.Tensor] = []

        def listen(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            heard.append(inputs[0][0, -1])

        handle = self._model.get_submodule(path).register_forward_pre_hook(listen)
        try:
            with torch.no_grad():
                self._model(input_ids=prompt_BT, use_cache=False)
        finally:
            handle.remove()
        return heard[-1]

    def _activate(self, plan: RoutingPlan, *, num_prompt_tokens: int) -> None:
        writing = self._updates(plan.writing)
        self._active = (self._updates(plan.reading) if plan.has_phases else {}, writing)
        self._num_read = num_prompt_tokens - 1 if plan.has_phases else 0

    def _updates(self, plan: RoutingPlan) -> dict[str, ModuleUpdate]:
        """What one phase adds to each layer."""
        acting = [budget for budget in plan.budgets if budget.num_rocs > 0]
        learned = self._learned(plan) if acting else {}
        pool = [self._in_basis(budget.adapter_name, plan.gate.basis) for budget in acting]
        updates: dict[str, ModuleUpdate] = {}
        for path in {path for adapter in pool for path in adapter.modules}:
            there = [
                (budget, adapter.modules[path])
                for budget, adapter in zip(acting, pool, strict=True)
                if path in adapter.modules
            ]
            updates[path] = ModuleUpdate(
                replace(plan, budgets=tuple(budget for budget, _ in there)),
                [rocs for _, rocs in there],
                learned=learned.get(path),
                place=path,
            )
        return updates

    def _learned(self, plan: RoutingPlan) -> Mapping[str, GateTensors]:
        """The plan's learned gate by module path; empty if its rule needs none."""
        gate_id = plan.gate.gate_id
        if gate_id is None:
            return {}
        if gate_id not in self._gates:
            raise UnknownAdapter(
                f"The plan needs gate {gate_id}, which this model was not given.",
                code="unknown_gate",
                remedy="Pass it to GatedModel as one of gates, or use a rule that needs none.",
                place="plan.gate.gate_id",
            )
        gate = self._gates[gate_id]
        if gate.rule is not plan.gate.rule:
            raise InvalidInput(
                f"Gate {gate_id} is one of rule {gate.rule}; the plan's rule is {plan.gate.rule}.",
                code="gate_rule_mismatch",
                remedy="Name a gate of the plan's rule.",
                place="plan.gate.gate_id",
            )
        return gate.modules

    def _in_basis(self, adapter_name: str, basis: RocBasis) -> DecomposedAdapter:
        key = (adapter_name, basis)
        if key not in self._decomposed:
            self._decomposed[key] = decompose(self._adapters[adapter_name], basis=basis)
        return self._decomposed[key]

    def _hook_of(self, path: str) -> Any:
        def add_update(
            _module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
        ) -> torch.Tensor:
            read, written = (updates.get(path) for updates in self._active)
            x, num_read = inputs[0], self._num_read
            if num_read == 0:
                return _updated(output, x, written)
            if x.dim() != 3:
                raise ValueError(f"{path} sees tokens without their positions: two phases cannot be told apart there")
            before = _updated(output[:, :num_read], x[:, :num_read], read)
            return torch.cat([before, _updated(output[:, num_read:], x[:, num_read:], written)], dim=1)

        return add_update


def _updated(y: torch.Tensor, x: torch.Tensor, update: ModuleUpdate | None) -> torch.Tensor:
    """A layer's output with what the ROCs add for its input."""
    if update is None:
        return y
    return y + update(x.reshape(-1, x.shape[-1])).reshape(y.shape)
