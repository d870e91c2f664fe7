"""What the tokens of a step bring to a layer, as far as gates ask: products with vectors, and the spread of entries.

Shapes: T tokens, D in-features, N vectors, R of them.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch

from hilora.adaptive_gating import deviations
from services.worker.kernels.native_ops import linear


class LayerInputs(Protocol):
    """The inputs `x` of a layer."""

    def products(self, vectors_ND: torch.Tensor, rows_R: torch.Tensor | None = None) -> torch.Tensor:
        """`v . x` for all vectors, `[T, N]`, or for some of them, `[T, R]`."""
        ...

    def deviations(self) -> torch.Tensor:
        """Standard deviation of the entries of each `x`, `[T]`."""
        ...


class DenseInputs:
    """Inputs of a linear layer."""

    def __init__(self, x_TD: torch.Tensor) -> None:
        self._x_TD = x_TD

    def products(self, vectors_ND: torch.Tensor, rows_R: torch.Tensor | None = None) -> torch.Tensor:
        """See `LayerInputs`."""
        return linear(self._x_TD, vectors_ND if rows_R is None else vectors_ND.index_select(0, rows_R))

    def deviations(self) -> torch.Tensor:
        """See `LayerInputs`."""
        return deviations(self._x_TD)


class TokenIdInputs:
    """Inputs of an embedding: a token id stands for the vector that is 1 there and 0 elsewhere.

    Args:
        token_ids_T: the ids.
        num_features: D, the size of the vocabulary.
    """

    def __init__(self, token_ids_T: torch.Tensor, *, num_features: int) -> None:
        self._token_ids_T = token_ids_T
        self._num_features = num_features

    def products(self, vectors_ND: torch.Tensor, rows_R: torch.Tensor | None = None) -> torch.Tensor:
        """See `LayerInputs`."""
        if rows_R is None:
            return vectors_ND[:, self._token_ids_T].T
        return vectors_ND[rows_R[None], self._token_ids_T[:, None]]

    def deviations(self) -> torch.Tensor:
        """See `LayerInputs`."""
        share = 1 / self._num_features
        return torch.full(self._token_ids_T.shape, math.sqrt(share - share * share), device=self._token_ids_T.device)
