"""An embedding that adds the current step's ROCs to the base model's output.

Shapes: T tokens, D embedding dimension.

An embedding is a linear layer with one-hot inputs: `a . x` is the entry of `a` at the token's id. Some models multiply
their embeddings by a number; PEFT multiplies the adapter's part by it too, and so does this. Which embeddings are
wrapped, and which make something else of their input, `hilora/target_layer.py` says. An output embedding that shares
the weight is another layer: it is not touched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from services.worker.lora.gating.batch_plan import RocContext
from services.worker.lora.layers.gated_linear import forward_of


class GatedEmbedding(nn.Module):
    """Wraps an embedding in place.

    Args:
        embedding: the wrapped layer, used unchanged. Hooks on it work if they are there when it is wrapped.
        module_idx: its number in the pool.
        context: where the step's ROCs are found.
    """

    _base_forward: Callable[..., Any]

    def __init__(self, embedding: nn.Embedding, *, module_idx: int, context: RocContext) -> None:
        super().__init__()
        self.embedding = embedding
        vars(self)["_base_forward"] = forward_of(embedding)
        self._module_idx = module_idx
        self._context = context

    @property
    def weight(self) -> torch.Tensor:
        """The base weight: models look at it for its type."""
        return self.embedding.weight

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Ids of any shape to one `[D]` each; the ids flatten to the step's rows."""
        y = self._base_forward(token_ids)
        step = self._context.step
        if step is None:
            return y
        y_TD = y.view(-1, y.shape[-1])
        scale: Any = getattr(self.embedding, "embed_scale", None)
        if scale is None:
            step.add_embedding(self._module_idx, token_ids.reshape(-1), y_TD)
        else:
            update_TD = torch.zeros_like(y_TD)
            step.add_embedding(self._module_idx, token_ids.reshape(-1), update_TD)
            # In the model's type, as bases take it: in half precision that is another number.
            y_TD += update_TD * torch.as_tensor(scale, dtype=y_TD.dtype, device=y_TD.device)
        return y

    def __getattr__(self, name: str) -> Any:
        """What models ask an embedding about, such as `padding_idx`, is the base's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "embedding":
                raise
            return getattr(self.embedding, name)
