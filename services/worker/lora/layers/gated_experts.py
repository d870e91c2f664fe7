"""Experts, and the layer that chooses them, with the current step's ROCs added.

Shapes: T tokens, D in-features, E experts, I an expert's inner width, C choices of a token, K tokens of one expert.

transformers keeps the experts of a layer as two stacked weights, `gate_up_proj` `[E, 2 I, D]` and `down_proj`
`[E, D, I]`. A ROC belongs to one expert: for a step with ROCs of a layer's experts these are computed one after
another, each for the tokens that chose it, and the ROCs of its linear layers are added in between. Otherwise the base's
own implementation runs.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from hilora.target_layer import EXPERT_PROJECTIONS
from services.worker.kernels.native_ops import linear
from services.worker.lora.gating.batch_plan import RocContext, StepWork

_GATE_UP, _GATE, _UP, _DOWN = range(len(EXPERT_PROJECTIONS))


class GatedExperts(nn.Module):
    """Wraps a layer's stacked experts in place.

    Args:
        experts: the wrapped module, used unchanged.
        first_module_idx: number in the pool of the first expert's first linear layer; the others follow it, expert by
            expert, in the order of `EXPERT_PROJECTIONS`.
        context: where the step's ROCs are found.
    """

    def __init__(self, experts: nn.Module, *, first_module_idx: int, context: RocContext) -> None:
        super().__init__()
        self.experts = experts
        stacked: Any = experts.gate_up_proj
        self._num_experts = int(stacked.shape[0])
        num_modules = self._num_experts * len(EXPERT_PROJECTIONS)
        self._module_idxs = slice(first_module_idx, first_module_idx + num_modules)
        self._context = context

    def forward(self, x_TD: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        """See transformers' experts.

        Args:
            x_TD: the step's tokens.
            top_k_index: `[T, C]`, the experts that each token chose.
            top_k_weights: `[T, C]`, what their outputs are weighted by.
        """
        step = self._context.step
        if step is None or not step.has_targets(self._module_idxs):
            return self.experts(x_TD, top_k_index, top_k_weights)
        num_experts, num_choices = self._num_experts, top_k_index.shape[-1]
        chosen, order = torch.sort(top_k_index.reshape(-1), stable=True)
        tokens = torch.div(order, num_choices, rounding_mode="floor")
        weights = top_k_weights.reshape(-1)[order]
        out_TD = torch.zeros_like(x_TD)
        start = 0
        for expert_idx, num_tokens in enumerate(torch.bincount(chosen, minlength=num_experts).tolist()[:num_experts]):
            if num_tokens == 0:
                continue
            rows = slice(start, start + num_tokens)
            start += num_tokens
            y_KD = self._expert(expert_idx, x_TD[tokens[rows]], tokens[rows], step)
            out_TD.index_add_(0, tokens[rows], (y_KD * weights[rows, None]).to(out_TD.dtype))
        return out_TD

    def _expert(self, expert_idx: int, x_KD: torch.Tensor, token_idx_K: torch.Tensor, step: StepWork) -> torch.Tensor:
        experts: Any = self.experts
        module_idx = self._module_idxs.start + expert_idx * len(EXPERT_PROJECTIONS)
        gate_up = linear(x_KD, experts.gate_up_proj[expert_idx])
        gate, up = gate_up.chunk(2, dim=-1)
        for place, y in ((_GATE_UP, gate_up), (_GATE, gate), (_UP, up)):
            if step.is_targeted(module_idx + place):
                step.add(module_idx + place, x_KD, y, token_idx_T=token_idx_K)
        apply_gate = getattr(experts, "_apply_gate", None)
        inner_KI = experts.act_fn(gate) * up if apply_gate is None else apply_gate(gate_up)
        y_KD = linear(inner_KI, experts.down_proj[expert_idx])
        if step.is_targeted(module_idx + _DOWN):
            step.add(module_idx + _DOWN, inner_KI, y_KD, token_idx_T=token_idx_K)
        return y_KD


class GatedExpertRouter(nn.Module):
    """Wraps the layer that chooses a token's experts in place.

    What such a layer makes of its product `W x` differs between models, and is left to the layer. It is given ROCs by
    widening it: with `[W, 1]` as weight and `[x, update]` as input the same code chooses by `W x + update`.

    Args:
        router: the wrapped module, used unchanged.
        module_idx: its number in the pool.
        context: where the step's ROCs are found.
    """

    def __init__(self, router: nn.Module, *, module_idx: int, context: RocContext) -> None:
        super().__init__()
        self.router = router
        self._module_idx = module_idx
        self._context = context
        self._widened: nn.Module | None = None

    @property
    def weight(self) -> torch.Tensor:
        """The base weight `[E, D]`."""
        weight: Any = self.router.weight
        return weight

    def forward(self, hidden_states: torch.Tensor) -> Any:
        """See the wrapped layer."""
        step = self._context.step
        if step is None or not step.is_targeted(self._module_idx):
            return self.router(hidden_states)
        x_TD = hidden_states.reshape(-1, hidden_states.shape[-1])
        update_TE = x_TD.new_zeros(x_TD.shape[0], self.weight.shape[0])
        step.add(self._module_idx, x_TD, update_TE)
        if self._widened is None:
            # Outside the module tree: it shares everything but the weight with the layer that is in it.
            vars(self)["_widened"] = _widened(self.router)
        assert self._widened is not None
        return self._widened(torch.cat([x_TD, update_TE], dim=-1))


def _widened(router: Any) -> nn.Module:
    weight_ED: torch.Tensor = router.weight
    num_experts = weight_ED.shape[0]
    identity = torch.eye(num_experts, dtype=weight_ED.dtype, device=weight_ED.device)
    widened = copy.copy(router)
    vars(widened)["_parameters"] = {
        **dict(router.named_parameters(recurse=False)),
        "weight": nn.Parameter(torch.cat([weight_ED, identity], dim=1), requires_grad=False),
    }
    widened.hidden_dim = router.hidden_dim + num_experts
    return widened
