"""Looking through a whole vocabulary without sorting it.

Shapes: R rows, V vocabulary, N blocks of a row, K candidates of a row.

A vocabulary of 150,000 tokens takes 20 ms to sort and 0.1 ms to read. The largest values of a row are all in the blocks
with the largest maxima, so one pass for the maxima and a sort of a few blocks find them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

_BLOCK_SIZE = 64
"""About the square root of V / K: as many block maxima as members of the chosen blocks."""
_SLACK = 16
"""Candidates beyond those asked for, so that equal values at the end rarely force a full sort."""


class LeadingTokens:
    """The largest values of one row, largest first, of equals the lower token id first.

    Args:
        values_K: sorted so.
        num_certain: so many are certainly in the order of the whole row. The rest equal the last one, and so may tokens
            that are not here.
        token_ids_K: of the values; None if they are to be looked up in `row_V`.
        row_V: the row, where this is all of it.
    """

    def __init__(
        self,
        values_K: NDArray[np.floating],
        *,
        num_certain: int,
        token_ids_K: NDArray[np.int64] | None = None,
        row_V: NDArray[np.floating] | None = None,
    ) -> None:
        self.values_K = values_K
        self.num_certain = num_certain
        self._token_ids_K = token_ids_K
        self._row_V = row_V

    def token_at(self, place: int) -> int:
        """The token id at a place of the order."""
        if self._token_ids_K is not None:
            return int(self._token_ids_K[place])
        assert self._row_V is not None, "a row has its token ids or itself"
        value = self.values_K[place]
        num_larger = int(np.searchsorted(-self.values_K, -value))
        return int(np.flatnonzero(self._row_V == value)[place - num_larger])


def best_tokens(logits_RV: torch.Tensor) -> tuple[list[float], list[int]]:
    """The largest value of each row, and where it is, of equals the lowest token id; NaN if a row holds one."""
    # Looking for a place costs ten times as much as looking for a value, so only one block is looked through.
    num_tokens = logits_RV.shape[1]
    num_whole = num_tokens // _BLOCK_SIZE * _BLOCK_SIZE
    if num_whole < num_tokens:
        maxima_RN = torch.cat([_block_maxima(logits_RV), logits_RV[:, num_whole:].amax(-1, keepdim=True)], dim=1)
    else:
        maxima_RN = _block_maxima(logits_RV)
    block_idx_R1 = maxima_RN.argmax(-1, keepdim=True)
    ids_RB = block_idx_R1 * _BLOCK_SIZE + torch.arange(min(_BLOCK_SIZE, num_tokens), device=logits_RV.device)
    # The last block may be shorter; a place beyond it stands for its last token, which is no larger than itself.
    ids_RB.clamp_(max=num_tokens - 1)
    place_R1 = logits_RV.gather(1, ids_RB).argmax(-1, keepdim=True)
    best_R = maxima_RN.amax(-1)
    return best_R.tolist(), ids_RB.gather(1, place_R1)[:, 0].tolist()


def leading_tokens(logits_RV: torch.Tensor, num_leading: int) -> list[LeadingTokens]:
    """At least `num_leading` of the largest values of each row, or the whole row if it is shorter."""
    num_tokens = logits_RV.shape[1]
    num_candidates = num_leading + _SLACK
    if num_tokens <= max(num_candidates, _BLOCK_SIZE):
        return [all_tokens(row_V) for row_V in logits_RV]
    if num_candidates * _BLOCK_SIZE >= num_tokens:
        values_RK, token_ids_RK = logits_RV.topk(num_candidates)
    else:
        values_RK, token_ids_RK = _leading_by_blocks(logits_RV, num_candidates)
    pairs = zip(_as_numpy(values_RK), token_ids_RK.cpu().numpy(), strict=True)
    return [_in_order(values_K, token_ids_K) for values_K, token_ids_K in pairs]


def all_tokens(logits_V: torch.Tensor) -> LeadingTokens:
    """A whole row in order."""
    row_V = _as_numpy(logits_V)
    # Values alone sort ten times as fast as values with their places; the places of a few are found afterwards.
    values_V = -np.sort(-row_V)
    return LeadingTokens(values_V, num_certain=len(values_V), row_V=row_V)


def likeliest_tokens(logits_RV: torch.Tensor, num_top: int) -> list[list[tuple[int, float]]]:
    """`(token id, logit)` of the `num_top` largest values of each row, in order."""
    found: list[list[tuple[int, float]]] = []
    for row, leading in enumerate(leading_tokens(logits_RV, num_top)):
        certain = leading if leading.num_certain >= num_top else all_tokens(logits_RV[row])
        values = certain.values_K[:num_top].tolist()
        found.append([(certain.token_at(place), value) for place, value in enumerate(values)])
    return found


def block_masses(weights_RV: torch.Tensor) -> NDArray[np.float64]:
    """Sums of the blocks of each row, `[R, N]`; the last block may be shorter."""
    num_whole = weights_RV.shape[1] // _BLOCK_SIZE * _BLOCK_SIZE
    # float64 holds sums of float32 so exactly that it does not matter in which order a device adds.
    blocks_RN = weights_RV[:, :num_whole].unflatten(1, (-1, _BLOCK_SIZE)).sum(-1, dtype=torch.float64)
    if num_whole < weights_RV.shape[1]:
        tail_R1 = weights_RV[:, num_whole:].sum(-1, dtype=torch.float64, keepdim=True)
        blocks_RN = torch.cat([blocks_RN, tail_R1], dim=1)
    return blocks_RN.cpu().numpy()


def block_at(weights_V: torch.Tensor, block_idx: int) -> tuple[int, NDArray[np.floating]]:
    """First token id of a row's block, and the block's weights."""
    start = block_idx * _BLOCK_SIZE
    return start, _as_numpy(weights_V[start : start + _BLOCK_SIZE])


def row_groups(num_rows: int, device: torch.device) -> Iterator[slice]:
    """Rows to treat together: on the CPU one by one, so that a row stays in the cache from one pass to the next; on a
    GPU all at once, so that its kernels are started once."""
    step = 1 if device.type == "cpu" else num_rows
    return (slice(start, start + step) for start in range(0, num_rows, step))


def _leading_by_blocks(logits_RV: torch.Tensor, num_candidates: int) -> tuple[torch.Tensor, torch.Tensor]:
    num_whole = logits_RV.shape[1] // _BLOCK_SIZE * _BLOCK_SIZE
    block_idx_RK = _block_maxima(logits_RV).topk(num_candidates, sorted=False).indices
    within_B = torch.arange(_BLOCK_SIZE, device=logits_RV.device)
    ids_RM = (block_idx_RK[:, :, None] * _BLOCK_SIZE + within_B).flatten(1)
    tail_T = torch.arange(num_whole, logits_RV.shape[1], device=logits_RV.device)
    ids_RM = torch.cat([ids_RM, tail_T.expand(len(ids_RM), -1)], dim=1)
    values_RK, place_RK = logits_RV.gather(1, ids_RM).topk(num_candidates)
    return values_RK, ids_RM.gather(1, place_RK)


def _block_maxima(logits_RV: torch.Tensor) -> torch.Tensor:
    """Maxima of the whole blocks of each row, `[R, N]`."""
    num_whole = logits_RV.shape[1] // _BLOCK_SIZE * _BLOCK_SIZE
    return logits_RV[:, :num_whole].unflatten(1, (-1, _BLOCK_SIZE)).amax(-1)


def _in_order(values_K: NDArray[np.floating], token_ids_K: NDArray[np.int64]) -> LeadingTokens:
    order_K = np.lexsort((token_ids_K, -values_K))
    values_K = values_K[order_K]
    num_larger = int(np.searchsorted(-values_K, -values_K[-1]))
    return LeadingTokens(values_K, num_certain=num_larger, token_ids_K=token_ids_K[order_K])


def _as_numpy(tensor: torch.Tensor) -> NDArray[np.floating]:
    return tensor.cpu().numpy()
