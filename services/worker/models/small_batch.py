"""Linear layers that read their weight once when a step has few rows.

Shapes: D in-features, O out-features.

A decode step of a small batch costs what reading the weights costs. General matrix products repack the weight first,
which for few rows takes as long again; the CPU kernel does not.
"""

from __future__ import annotations

import torch
from torch import nn

from services.worker.kernels.native_ops import is_native_usable, linear


class SmallBatchForward:
    """The forward pass of one `nn.Linear`, by the kernel if the step has few rows."""

    def __init__(self, layer: nn.Linear) -> None:
        self._layer = layer

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., D]` to `[..., O]`."""
        return linear(x, self._layer.weight, self._layer.bias)


def speed_up_small_batches(model: nn.Module) -> int:
    """Give the model's plain float32 linear layers on the CPU a forward pass that is fast for few rows.

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
            or not is_native_usable(dtype=module.weight.dtype, device=module.weight.device)
        ):
            continue
        vars(module)["forward"] = SmallBatchForward(module)
        num_changed += 1
    return num_changed
