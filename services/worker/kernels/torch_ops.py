"""Token-level ROC gating in torch: shrink, gate, expand (arXiv 2510.12266, token level).

Shapes: T tokens, D in-features, O out-features, R components (columns of one shrink), G groups in which ROCs compete,
S slots of a group, K kept slots of a group, N rows of the pool.

    h = x a^T                                 shrink
    p = c h;  keep the o largest |p| of each group (times ||b|| for the contribution score)
    delta = sum over kept slots of p b        expand

`c` carries the adapter's weight and the plan's eta. Multiplying before comparing gives both scopes one rule: inside one
adapter c is a constant and changes no order; over the union of adapters the rule is `|weight| * score` already.

Rows of different tokens never mix: a NaN stays in the rows, and in the components, it came from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

_SUM = 0
"""torch.embedding_bag's number for mode "sum"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RocGate:
    """What one shrink's columns mean, for one rule per token (`T` rows) or one rule for all (1 row)."""

    coefficients_TGS: torch.Tensor
    """Factor of each slot's activation; 0 where a slot is padding."""
    kept_TGK: torch.Tensor | None
    """1 for the first `o` of the K best slots of a group, else 0. None if every group may use all its slots."""
    norm_weights_T11: torch.Tensor | None
    """1 for tokens that compete by contribution, 0 by activation. None if all do by activation."""

    @property
    def num_kept(self) -> int:
        """K: the largest budget of any group."""
        return int(self.coefficients_TGS.shape[2] if self.kept_TGK is None else self.kept_TGK.shape[2])


@dataclass(frozen=True, slots=True)
class KeptRocs:
    """The gate's answer."""

    gains_TGK: torch.Tensor
    """`c h` of the kept slots; 0 in the places a smaller budget leaves empty."""
    slots_TGK: torch.Tensor | None
    """Which slots were kept; None means all, in order."""


def roc_shrink(x_TD: torch.Tensor, a_RD: torch.Tensor) -> torch.Tensor:
    """Activations `a . x` of every component: `[T, R]`."""
    return functional.linear(x_TD, a_RD)


def roc_gate(h_TGS: torch.Tensor, gate: RocGate, b_norms_TGS: torch.Tensor | None = None) -> KeptRocs:
    """Keep each group's most responsive slots.

    Args:
        h_TGS: activations by group and slot; padding must be 0.
        gate: the rule.
        b_norms_TGS: `||b||` by slot; needed if the rule has `norm_weights_T11`.
    """
    p_TGS = h_TGS * gate.coefficients_TGS
    if gate.kept_TGK is None:
        return KeptRocs(p_TGS, None)
    score_TGS = p_TGS.abs()
    if gate.norm_weights_T11 is not None:
        assert b_norms_TGS is not None
        # A choice, not 1 + m (||b|| - 1): in half precision that sum swallows small norms.
        score_TGS = torch.where(gate.norm_weights_T11 > 0, score_TGS * b_norms_TGS, score_TGS)
    # A stable sort and not topk: among equal scores the lower slot wins, whatever else is in the batch.
    slots_TGK = score_TGS.sort(dim=-1, descending=True, stable=True).indices[..., : gate.num_kept]
    return KeptRocs(p_TGS.gather(-1, slots_TGK) * gate.kept_TGK, slots_TGK)


def roc_expand(kept: KeptRocs, rows_TGS: torch.Tensor, b_NO: torch.Tensor, bag_starts_T: torch.Tensor) -> torch.Tensor:
    """Sum of the kept up-vectors, each token with slots of its own: `[T, O]`. Reads only the kept rows of `b`.

    Args:
        kept: the gate's answer.
        rows_TGS: row of `b` behind each slot.
        b_NO: up-vectors.
        bag_starts_T: `bag_starts` of the gate: where each token's kept slots begin in one flat list.
    """
    rows = rows_TGS if kept.slots_TGK is None else rows_TGS.gather(-1, kept.slots_TGK)
    # torch's own wrapper (functional.embedding_bag) costs as much again as the operator at these sizes.
    summed, *_ = torch.embedding_bag(
        b_NO,
        rows.flatten(),
        bag_starts_T,
        scale_grad_by_freq=False,
        mode=_SUM,
        sparse=False,
        per_sample_weights=kept.gains_TGK.flatten(),
    )
    return summed


def bag_starts(gate: RocGate) -> torch.Tensor:
    """Where each token's kept slots begin when those of all tokens are one flat list: `[T]`."""
    num_tokens, num_groups, _ = gate.coefficients_TGS.shape
    return torch.arange(num_tokens, device=gate.coefficients_TGS.device) * (num_groups * gate.num_kept)


def roc_expand_shared(kept: KeptRocs, num_slots: int, b_RO: torch.Tensor) -> torch.Tensor:
    """Sum of the kept up-vectors where all tokens share the same slots: `[T, O]`, one dense product.

    Args:
        kept: the gate's answer.
        num_slots: S.
        b_RO: up-vectors by slot, `R = G S`, group by group.
    """
    if kept.slots_TGK is None:
        gains_TGS = kept.gains_TGK
    else:
        num_tokens, num_groups, _ = kept.gains_TGK.shape
        gains_TGS = kept.gains_TGK.new_zeros(num_tokens, num_groups, num_slots)
        gains_TGS.scatter_(-1, kept.slots_TGK, kept.gains_TGK)
    return gains_TGS.flatten(1) @ b_RO
