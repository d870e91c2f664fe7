"""From examples to padded tensors, and the loss on answer tokens.

Shapes: B examples, T tokens of the longest, N answer tokens in the batch, V words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from hilora_lab.testbed.tasks import Example


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedExample:
    """A prompt's ids (BOS first) and its answer's ids (EOS last)."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Right-padded examples; causal attention never looks at padding, so no mask is needed."""

    input_ids_BT: torch.Tensor
    answer_mask_BT: torch.Tensor
    """True where the token belongs to an answer."""
    text_mask_BT: torch.Tensor
    """True where it belongs to a prompt or an answer."""


def tokenize_example(tokenizer: PreTrainedTokenizerFast, example: Example) -> TokenizedExample:
    """Ids of a prompt and of its answer, as the serving side would see and produce them."""
    prompt = tuple(cast("list[int]", tokenizer(example.prompt)["input_ids"]))
    answer = tuple(cast("list[int]", tokenizer(f"{example.answer} {tokenizer.eos_token}")["input_ids"])[1:])
    return TokenizedExample(prompt_ids=prompt, answer_ids=answer)


def collate(examples: Sequence[TokenizedExample]) -> Batch:
    """Pad to the longest example; any id would do."""
    rows = [example.prompt_ids + example.answer_ids for example in examples]
    longest = max(len(row) for row in rows)
    input_ids_BT = torch.zeros((len(rows), longest), dtype=torch.long)
    answer_mask_BT = torch.zeros((len(rows), longest), dtype=torch.bool)
    text_mask_BT = torch.zeros((len(rows), longest), dtype=torch.bool)
    for row_idx, (row, example) in enumerate(zip(rows, examples, strict=True)):
        input_ids_BT[row_idx, : len(row)] = torch.tensor(row)
        answer_mask_BT[row_idx, len(example.prompt_ids) : len(row)] = True
        text_mask_BT[row_idx, : len(row)] = True
    return Batch(input_ids_BT=input_ids_BT, answer_mask_BT=answer_mask_BT, text_mask_BT=text_mask_BT)


def answer_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy of the answer tokens, each predicted from all before it."""
    return _loss(model, batch, batch.answer_mask_BT)


def text_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """The same over all tokens but the first, prompts included."""
    return _loss(model, batch, batch.text_mask_BT)


def _loss(model: torch.nn.Module, batch: Batch, mask_BT: torch.Tensor) -> torch.Tensor:
    logits_BTV = model(input_ids=batch.input_ids_BT, use_cache=False).logits
    is_target_BT = mask_BT[:, 1:]
    logits_NV = logits_BTV[:, :-1][is_target_BT].float()
    return functional.cross_entropy(logits_NV, batch.input_ids_BT[:, 1:][is_target_BT])
