"""A linear layer that adds the current step's ROCs to the base model's output.

Shapes: T rows, D in-features, O out-features.

    y = W0 x + bias + eta * sum_i w_i sum_{j kept} b_ij (a_ij . x)        (arXiv 2510.12266, token level)
"""

from __future__ import annotations

import torch
from torch import nn

from services.worker.lora.batch_plan import RocContext
from services.worker.lora.roc_arena import ModuleShape


class GatedLinear(nn.Module):
    """Wraps a base model's linear layer in place.

    Args:
        linear: the wrapped layer, used unchanged.
        module_idx: its number in the pool.
        context: where the step's ROCs are found.
        is_output_embedding: whether it sees only the rows that are sampled from.
    """

    def __init__(self, linear: nn.Linear, *, module_idx: int, context: RocContext, is_output_embedding: bool) -> None:
        super().__init__()
        self.linear = linear
        self._module_idx = module_idx
        self._context = context
        self._is_output_embedding = is_output_embedding

    @property
    def weight(self) -> torch.Tensor:
        """The base weight: models look at it for its type."""
        return self.linear.weight

    @property
    def bias(self) -> torch.Tensor | None:
        """The base bias."""
        return self.linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., D]` to `[..., O]`; the leading dimensions flatten to the step's rows."""
        y = self.linear(x)
        step = self._context.step
        if step is not None:
            step.add(
                self._module_idx,
                x.reshape(-1, x.shape[-1]),
                y.view(-1, y.shape[-1]),
                is_output_embedding=self._is_output_embedding,
            )
        return y


def wrap_linears(model: nn.Module, context: RocContext, *, output_embedding: nn.Module | None) -> list[ModuleShape]:
    """Replace every linear layer of a model by a gated one.

    Args:
        model: changed in place.
        context: shared by all of the layers.
        output_embedding: the layer that makes the logits.

    Returns:
        The wrapped layers, in the order of their module indices.
    """
    found = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    shapes: list[ModuleShape] = []
    for module_path, linear in found:
        parent_path, _, name = module_path.rpartition(".")
        gated = GatedLinear(
            linear, module_idx=len(shapes), context=context, is_output_embedding=linear is output_embedding
        )
        setattr(model.get_submodule(parent_path), name, gated)
        shapes.append(
            ModuleShape(module_path=module_path, in_features=linear.in_features, out_features=linear.out_features)
        )
    return shapes
