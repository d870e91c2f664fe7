"""Reads a prompt with the base alone, to see what one layer is given at its last token.

Shapes: T tokens of one chunk, D in-features of the layer.

As a gating pass it uses keys and values of its own: no request's memory is touched, and nothing waits for adapters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from services.worker.engine.execution.gating_pass import Forward
from services.worker.engine.kv.kv_cache import KvCache


class InputPass:
    """One prompt's reading, chunk by chunk.

    Args:
        token_ids: of the prompt, at least one.
        module_idx: the layer.
        kv_cache: a cache that is the pass's alone, with room for the tokens.
        forward: the model.
        device: the model's.
    """

    def __init__(
        self,
        token_ids: Sequence[int],
        *,
        module_idx: int,
        kv_cache: KvCache,
        forward: Forward,
        device: torch.device,
    ) -> None:
        self._token_ids = list(token_ids)
        self._ear = _ListeningStep(module_idx)
        self._kv_cache = kv_cache
        self._forward = forward
        self._device = device
        self._handle = kv_cache.allocate("asked", self._token_ids, prefix_key=None)
        self._num_read = 0

    @property
    def is_done(self) -> bool:
        """Whether the prompt is read."""
        return self._num_read == len(self._token_ids)

    @torch.inference_mode()
    def advance(self, max_tokens: int) -> None:
        """Read the next tokens, at most so many. Between the engine's steps, on its thread."""
        start = self._num_read
        stop = min(start + max_tokens, len(self._token_ids))
        self._forward(
            token_ids_T=self._tensor(self._token_ids[start:stop]),
            positions_T=self._tensor(range(start, stop)),
            logit_rows_S=self._tensor([stop - start - 1]),
            attention=self._kv_cache.attention_step([], [(self._handle, 0, start, stop - start)], self._device),
            rocs=self._ear,
        )
        self._num_read = stop

    def result(self) -> torch.Tensor:
        """What the layer was given at the last token, `[D]` in main memory, once all is read."""
        assert self.is_done, "the last token is not read"
        assert self._ear.heard_D is not None, "the layer is one that every token passes"
        return self._ear.heard_D.cpu()

    def _tensor(self, numbers: Sequence[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self._device)


class _ListeningStep:
    """Stands where a step's components would be (`StepWork`), adds nothing, and remembers one layer's last input."""

    def __init__(self, module_idx: int) -> None:
        self._module_idx = module_idx
        self.heard_D: torch.Tensor | None = None

    def add(
        self,
        module_idx: int,
        x_TD: torch.Tensor,
        y_TO: torch.Tensor,  # noqa: ARG002  (the protocol's)
        *,
        is_output_embedding: bool = False,  # noqa: ARG002
        token_idx_T: torch.Tensor | None = None,
    ) -> None:
        """See `StepWork`. A selection of the tokens, as an expert sees it, may lack the last one."""
        if module_idx == self._module_idx and token_idx_T is None and len(x_TD):
            self.heard_D = x_TD[-1].clone()

    def add_embedding(self, module_idx: int, token_ids_T: torch.Tensor, y_TO: torch.Tensor) -> None:
        """See `StepWork`."""

    def is_targeted(self, module_idx: int) -> bool:
        """See `StepWork`."""
        return module_idx == self._module_idx

    def has_targets(self, module_idxs: slice) -> bool:
        """See `StepWork`."""
        return module_idxs.start <= self._module_idx < module_idxs.stop
