"""Exact match by teacher forcing: one forward pass a batch, no generation.

Greedy decoding produces the gold answer exactly if at every answer position, given the gold prefix, the gold token has
the largest logit; so comparing argmaxes under teacher forcing is the same number.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hilora_lab.testbed.batches import TokenizedExample, collate


@torch.no_grad()
def is_answered(model: torch.nn.Module, examples: Sequence[TokenizedExample], *, batch_size: int = 128) -> list[bool]:
    """For each example whether greedy decoding gives exactly its answer, EOS included."""
    was_training = model.training
    model.eval()
    answered: list[bool] = []
    for start in range(0, len(examples), batch_size):
        batch = collate(examples[start : start + batch_size])
        predicted_BT = model(input_ids=batch.input_ids_BT, use_cache=False).logits[:, :-1].argmax(-1)
        is_wrong_BT = (predicted_BT != batch.input_ids_BT[:, 1:]) & batch.answer_mask_BT[:, 1:]
        answered += (~is_wrong_BT.any(dim=1)).tolist()
    model.train(was_training)
    return answered
