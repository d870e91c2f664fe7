"""What adapters say of themselves: the texts of self-portraits, generated in the lab as a worker would.

Shapes: B texts generated together, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import cast

import torch
from transformers import PreTrainedTokenizerFast

from hilora.routing_explanation import explicit_decision
from hilora.routing_plan import RoutingPlan
from hilora.self_portrait import PORTRAIT_TEMPERATURE, PORTRAIT_TOKENS, PortraitPrompt
from hilora_lab.evaluation.gated_model import GatedModel


class Sitter:
    """Generates the texts of self-portraits as a worker does: one adapter switched on, with all its components.

    Args:
        model: the base with its pool.
        tokenizer: the base's.
        eos_token_id: what ends a text.
    """

    def __init__(self, model: GatedModel, tokenizer: PreTrainedTokenizerFast, *, eos_token_id: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._eos_token_id = eos_token_id

    def texts(self, adapter_name: str, lora_rank: int, prompts: Sequence[PortraitPrompt]) -> list[str]:
        """The text of each prompt, openings included, in order."""
        decision = explicit_decision(
            adapter_id=adapter_name, adapter_name=adapter_name, lora_rank=lora_rank, catalog_generation=0
        )
        by_length: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
        for idx, prompt in enumerate(prompts):
            token_ids = cast("list[int]", self._tokenizer(prompt.opening)["input_ids"])
            if token_ids:  # a tokenizer without a start token cannot begin from nothing
                by_length[len(token_ids)].append((idx, token_ids))
        texts = [""] * len(prompts)
        for group in by_length.values():
            continuations = self._continue(
                decision.plan, [ids for _, ids in group], [prompts[i].seed for i, _ in group]
            )
            for (idx, _), continuation in zip(group, continuations, strict=True):
                texts[idx] = prompts[idx].text(continuation)
        return texts

    def _continue(self, plan: RoutingPlan, prompts: list[list[int]], seeds: list[int]) -> list[str]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        ids_BT = torch.tensor(prompts)
        is_done_B = torch.zeros(len(prompts), dtype=torch.bool)
        for _ in range(PORTRAIT_TOKENS):
            logits_BV = self._model.logits(plan, ids_BT)[:, -1].float()
            shares_BV = torch.softmax(logits_BV / PORTRAIT_TEMPERATURE, dim=-1)
            drawn = [
                torch.multinomial(shares_V, 1, generator=generator)
                for shares_V, generator in zip(shares_BV, generators, strict=True)
            ]
            next_B = torch.where(is_done_B, self._eos_token_id, torch.cat(drawn))
            ids_BT = torch.cat([ids_BT, next_B[:, None]], dim=1)
            is_done_B |= next_B == self._eos_token_id
            if bool(is_done_B.all()):
                break
        begin = len(prompts[0])
        return [str(self._tokenizer.decode(row[begin:], skip_special_tokens=True)) for row in ids_BT.tolist()]
