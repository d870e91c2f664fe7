"""Muon: momentum whose step is orthogonalised, for the two-dimensional weights of a transformer's layers.

After Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). The step of a matrix is
the nearest semi-orthogonal matrix to its momentum, found by a quintic Newton-Schulz iteration; every singular
direction then learns at the same speed, which is what lets a model this small learn a dozen skills within minutes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the iteration: they push singular values into about [0.7, 1.2] within five rounds."""


def orthogonalised(matrix: torch.Tensor, *, num_rounds: int = 5) -> torch.Tensor:
    """The semi-orthogonal factor of a matrix `[O, D]`, approximately: its SVD with the singular values near 1."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / (x.norm() + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(num_rounds):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with orthogonalised steps.

    Args:
        params: two-dimensional weights only.
        lr: step length; a step has root-mean-square size of about `lr * sqrt(max(1, O / D) / D)`.
        momentum: decay of the running gradient.
    """

    def __init__(self, params: Iterable[torch.nn.Parameter], *, lr: float = 0.02, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure: the loss is computed once a step
        """Take one step from the gradients at hand; parameters without a gradient stay."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                running = state["momentum"]
                running.lerp_(weight.grad, 1.0 - group["momentum"])
                direction = orthogonalised(weight.grad.lerp(running, group["momentum"]))
                scale = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
                weight.add_(direction, alpha=-group["lr"] * scale)
