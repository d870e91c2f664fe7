"""Linear layers by the fastest product there is for float32 on a CPU.

Shapes: D in-features, O out-features.

A decode step of a small batch costs what reading the weights costs: general matrix products repack the weight first,
which for few rows takes as long again; the CPU kernel does not. For many rows the best general product is taken.
"""

from __future__ import annotations

import torch
from torch import nn

from services.worker.kernels.native_ops import linear


class FastForward:
    """The forward pass of one `nn.Linear`."""

    def __init__(self, layer: nn.Linear) -> None:
        self._layer = layer

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., D]` to `[..., O]`."""
        return linear(x, self._layer.weight, self._layer.bias)


def speed_up_linear_layers(model: nn.Module) -> int:
    """Give the model's plain float32 linear layers on the CPU a faster forward pass.

    Args:
        model: changed in place; its weights stay where they are, and each layer looks its weight up at every call.

    Returns:
        How many layers were changed.
    """
    num_changed = 0
    for module in model.modules():
        # Subclasses (quantised layers, for one) know better what their weight is, and so does whoever gave a layer a
        # forward pass of its own already (sharded layers have one).
        if (
            type(module) is not nn.Linear
            or "forward" in vars(module)
            or module.weight.dtype is not torch.float32
            or module.weight.device.type != "cpu"
        ):
            continue
        vars(module)["forward"] = FastForward(module)
        num_changed += 1
    return num_changed
