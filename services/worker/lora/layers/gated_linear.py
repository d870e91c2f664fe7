"""A linear layer that adds the current step's ROCs to the base model's output.

Shapes: T rows, D in-features, O out-features.

    y = W0 x + bias + eta * sum_i w_i sum_{j kept} b_ij (a_ij . x)        (arXiv 2510.12266, token level)

The base's product stays the base's: only its result is touched, so it may be quantised, transposed or sharded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from services.worker.lora.gating.batch_plan import RocContext


class GatedLinear(nn.Module):
    """Wraps a layer that acts as a linear one, in place.

    Args:
        linear: the wrapped layer, used unchanged. Hooks on it work if they are there when it is wrapped.
        module_idx: its number in the pool.
        context: where the step's ROCs are found.
        is_output_embedding: whether it sees only the rows that are sampled from.
    """

    _base_forward: Callable[..., Any]

    def __init__(self, linear: nn.Module, *, module_idx: int, context: RocContext, is_output_embedding: bool) -> None:
        super().__init__()
        self.linear = linear
        # Past the module tree: the layer is in it once, whichever of the two this is.
        vars(self)["_base_forward"] = forward_of(linear)
        self.module_idx = module_idx
        self._context = context
        self.is_output_embedding = is_output_embedding

    @property
    def weight(self) -> torch.Tensor:
        """The base weight: models look at it for its type."""
        weight: Any = self.linear.weight
        return weight

    @property
    def bias(self) -> torch.Tensor | None:
        """The base bias."""
        bias: Any = getattr(self.linear, "bias", None)
        return bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., D]` to `[..., O]`; the leading dimensions flatten to the step's rows."""
        y = self._base_forward(x)
        step = self._context.step
        if step is not None:
            step.add(
                self.module_idx,
                x.reshape(-1, x.shape[-1]),
                y.view(-1, y.shape[-1]),
                is_output_embedding=self.is_output_embedding,
            )
        return y


def forward_of(module: nn.Module) -> Callable[..., Any]:
    """What calling a module comes to: its own `forward`, or the module itself where hooks have to run around it.

    A wrapper that calls `module(x)` pays torch's dispatch twice for each layer of each step.
    """
    hooks = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_pre_hooks_with_kwargs",
        "_backward_hooks",
        "_backward_pre_hooks",
    )
    return module if any(getattr(module, name, None) for name in hooks) else module.forward
