"""What RAMoLE and PHATGOOSE learn, in the form that gradients reach.

Shapes: B examples, T tokens, L mixed adapters, D in-features, O out-features, G rank of RAMoLE's router.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn


class RouterLora(nn.Module):
    """RAMoLE's gate (arXiv 2406.16989): `softmax_i <A_r x, B_r^T v_i> / sqrt(G)` in each layer.

    `B_r` begins at zero, as a LoRA's does: the first mixture is the uniform one.

    Args:
        features: in- and out-features by layer.
        rank: G.
        generator: draws `A_r`.
    """

    def __init__(self, features: Mapping[str, tuple[int, int]], *, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.rank = rank
        self._names = {path: path.replace(".", "/") for path in features}
        self.router_a = nn.ParameterDict(
            {
                self._names[path]: nn.Parameter(torch.randn(rank, num_in, generator=generator) / math.sqrt(num_in))
                for path, (num_in, _) in features.items()
            }
        )
        self.router_b = nn.ParameterDict(
            {self._names[path]: nn.Parameter(torch.zeros(num_out, rank)) for path, (_, num_out) in features.items()}
        )
        self.is_dropped_BL: torch.Tensor | None = None
        """Adapters that an example has to do without; never all of them."""

    def tensors(self, path: str) -> tuple[torch.Tensor, torch.Tensor]:
        """`A_r [G, D]` and `B_r [O, G]` of a layer, without gradients."""
        return self.router_a[self._names[path]].detach().clone(), self.router_b[self._names[path]].detach().clone()

    def alphas(self, path: str, x_BTD: torch.Tensor, outputs_BTLO: torch.Tensor) -> torch.Tensor:
        """See `TokenMixer`."""
        query_BTG = x_BTD @ self.router_a[self._names[path]].T
        keys_BTLG = outputs_BTLO @ self.router_b[self._names[path]]
        scores_BTL = torch.einsum("btg,btlg->btl", query_BTG, keys_BTLG) / math.sqrt(self.rank)
        if self.is_dropped_BL is not None:
            scores_BTL = scores_BTL.masked_fill(self.is_dropped_BL[:, None], -math.inf)
        return torch.softmax(scores_BTL, dim=-1)


class SigmoidGate(nn.Module):
    """PHATGOOSE's gate of one adapter while it is trained (arXiv 2402.05859): `sigmoid(u . x)` in each layer.

    When it is used, `u` and `x` are standardised and adapters compete by a softmax; training sees the adapter alone.

    Args:
        features: in- and out-features by layer.
    """

    def __init__(self, features: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        self._names = {path: path.replace(".", "/") for path in features}
        self.vectors = nn.ParameterDict(
            {self._names[path]: nn.Parameter(torch.zeros(num_in)) for path, (num_in, _) in features.items()}
        )

    def vector(self, path: str) -> torch.Tensor:
        """`u [D]` of a layer, without gradients."""
        return self.vectors[self._names[path]].detach().clone()

    def alphas(self, path: str, x_BTD: torch.Tensor, outputs_BTLO: torch.Tensor) -> torch.Tensor:
        """See `TokenMixer`; L is 1."""
        del outputs_BTLO
        return torch.sigmoid(x_BTD @ self.vectors[self._names[path]])[..., None]
