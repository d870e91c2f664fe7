"""A gated linear layer whose base is sharded over several processes.

Shapes: T rows, D in-features, O out-features, n processes.

Which components act is decided by `|a . x|` over the whole of `x`, and every process must decide alike. So each of them
holds all components, and computes with whole inputs:

    base sharded by out-features    x is whole; of the ROCs' output, this process keeps its own O / n columns
    base sharded by in-features     x is gathered, D / n columns from each; y is summed up already, the same everywhere
    base sharded, output gathered   x and y are whole

A layer that no adapter of the step targets costs nothing more than its base.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from services.worker.lora.gating.batch_plan import RocContext
from services.worker.lora.layers.gated_linear import GatedLinear


class ColumnExchange(Protocol):
    """The processes that share a model, as its layers see them."""

    @property
    def rank(self) -> int:
        """Which of them this is, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def gather_columns(self, part_TD: torch.Tensor) -> torch.Tensor:
        """All processes' columns `[T, D / n]` side by side: `[T, D]`. All of them call it."""
        ...


class ShardedGatedLinear(GatedLinear):
    """Wraps a sharded layer, in place.

    Args:
        linear: the wrapped layer, used unchanged.
        module_idx: its number in the pool.
        context: where the step's ROCs are found.
        is_output_embedding: whether it sees only the rows that are sampled from.
        in_features: D of the whole layer.
        out_features: O of the whole layer.
        exchange: the processes.
    """

    def __init__(
        self,
        linear: nn.Module,
        *,
        module_idx: int,
        context: RocContext,
        is_output_embedding: bool,
        in_features: int,
        out_features: int,
        exchange: ColumnExchange,
    ) -> None:
        super().__init__(linear, module_idx=module_idx, context=context, is_output_embedding=is_output_embedding)
        self._in_features = in_features
        self._out_features = out_features
        self._exchange = exchange

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """This process's part of the input to its part of the output, as the base layer has them."""
        y = self._base_forward(x)
        step = self._context.step
        # All processes have the same plans, so either all of them gather or none does.
        if step is None or not step.is_targeted(self.module_idx):
            return y
        x_TD, y_TO = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        if x_TD.shape[1] < self._in_features:
            x_TD = self._exchange.gather_columns(x_TD)
        if y_TO.shape[1] == self._out_features:
            step.add(self.module_idx, x_TD, y_TO, is_output_embedding=self.is_output_embedding)
            return y
        update_TO = y_TO.new_zeros(len(y_TO), self._out_features)
        step.add(self.module_idx, x_TD, update_TO, is_output_embedding=self.is_output_embedding)
        first = self._exchange.rank * y_TO.shape[1]
        y_TO += update_TO[:, first : first + y_TO.shape[1]]
        return y
