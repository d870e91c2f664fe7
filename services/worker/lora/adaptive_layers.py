"""A plan's rule in one layer: numbers and tensors that stay the same while the plan's adapters stay where they are.

Shapes: T tokens, L the plan's adapters that have components in the layer, R those components side by side, D
in-features, G rank of RAMoLE's router. The equations are in `hilora/adaptive_gating.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hilora.adaptive_gating import (
    arrow_scores,
    best_factors,
    exact,
    output_norms,
    phatgoose_scores,
    ramole_keys,
    ramole_scores,
    softmax_factors,
)
from hilora.errors import InvalidInput
from hilora.learned_gate import GateTensors
from hilora.routing_plan import GateRule, RoutingPlan
from hilora.token_gating import gate_rocs, module_gate
from services.worker.lora.layer_inputs import LayerInputs
from services.worker.lora.roc_arena import RocArena


class AdaptiveLayer:
    """One plan's gate in one layer. Subclasses are the rules: each gives a factor per token and component.

    Args:
        plan: the budgets of the adapters that have components here.
        num_rocs: how many components each of them has here.
        rows_R: where they are in the arena.
        arena: the layer's.
    """

    def __init__(
        self, *, plan: RoutingPlan, num_rocs: Sequence[int], rows_R: torch.Tensor, arena: RocArena
    ) -> None:
        self.rows_R = rows_R
        self._top_k = plan.gate.top_k
        self._temperature = plan.gate.temperature
        self._gate = module_gate(plan, num_rocs=num_rocs)
        owners = [owner for owner, size in enumerate(num_rocs) for _ in range(size)]
        device = rows_R.device
        self._owners_R = torch.tensor(owners, device=device)
        members_RL = torch.nn.functional.one_hot(self._owners_R, len(num_rocs))
        self._members_RL = members_RL.to(exact(arena.a_ND[:0]).dtype)
        constants = [plan.gate.eta * plan.budgets[owner].weight for owner in owners]
        self._constants_R = torch.tensor(constants, dtype=arena.a_ND.dtype, device=device)

    def gains(self, h_TR: torch.Tensor, inputs: LayerInputs, arena: RocArena) -> torch.Tensor:
        """`g h` of each token and component, `[T, R]`.

        Args:
            h_TR: the tokens' responses.
            inputs: the layer's inputs they come from.
            arena: the layer's.
        """
        constants = self._constants_R
        if not self._gate.is_full:
            constants = gate_rocs(h_TR, gate=self._gate, b_norm_R=arena.b_norms_N[self.rows_R])
        return h_TR * constants * self.factors(h_TR, inputs).to(h_TR.dtype)

    def factors(self, h_TR: torch.Tensor, inputs: LayerInputs) -> torch.Tensor:
        """The rule's factor of each token and component, `[T, R]`: `alpha` of the equations."""
        raise NotImplementedError

    def _softmax_by_adapter(self, scores_TL: torch.Tensor) -> torch.Tensor:
        alphas_TL = softmax_factors(scores_TL, temperature=self._temperature, top_k=self._top_k)
        return alphas_TL[:, self._owners_R]


class ArrowLayer(AdaptiveLayer):
    """See `arrow_scores`."""

    def __init__(
        self, *, plan: RoutingPlan, num_rocs: Sequence[int], rows_R: torch.Tensor, arena: RocArena
    ) -> None:
        super().__init__(plan=plan, num_rocs=num_rocs, rows_R=rows_R, arena=arena)
        self._first_L = torch.tensor([start for start, _ in self._gate.segments], device=rows_R.device)
        self._norms_L = torch.linalg.vector_norm(exact(arena.a_ND[rows_R[self._first_L]]), dim=1)

    def factors(self, h_TR: torch.Tensor, inputs: LayerInputs) -> torch.Tensor:  # noqa: ARG002
        """See `AdaptiveLayer`."""
        return self._softmax_by_adapter(
            arrow_scores(h_TR, first_columns_L=self._first_L, first_norms_L=self._norms_L)
        )


class SpectrLayer(AdaptiveLayer):
    """See `output_norms`."""

    def factors(self, h_TR: torch.Tensor, inputs: LayerInputs) -> torch.Tensor:  # noqa: ARG002
        """See `AdaptiveLayer`."""
        return self._softmax_by_adapter(output_norms(h_TR, members_RL=self._members_RL))


class SeqrLayer(AdaptiveLayer):
    """See `output_norms` and `best_factors`."""

    def factors(self, h_TR: torch.Tensor, inputs: LayerInputs) -> torch.Tensor:  # noqa: ARG002
        """See `AdaptiveLayer`."""
        return best_factors(output_norms(h_TR, members_RL=self._members_RL))[:, self._owners_R]


class PhatgooseLayer(AdaptiveLayer):
    """See `phatgoose_scores`.

    Args:
        vectors_LD: the adapters' standardised gate vectors.
        others: see `AdaptiveLayer`.
    """

    def __init__(self, vectors_LD: torch.Tensor, **others: Any) -> None:
        super().__init__(**others)
        self._vectors_LD = vectors_LD

    def factors(self, h_TR: torch.Tensor, inputs: LayerInputs) -> torch.Tensor:  # noqa: ARG002
        """See `AdaptiveLayer`."""
        products_TL = inputs.products(self._vectors_LD)
        return self._softmax_by_adapter(
            phatgoose_scores(
                products_TL, deviations_T=inputs.deviations(), num_features=self._vectors_LD.shape[1]
            )
        )
