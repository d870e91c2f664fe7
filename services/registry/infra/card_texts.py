"""Texts from an adapter's card: the examples it gives, its description, its tags."""

from __future__ import annotations

import asyncio
import re

from services.registry.artifact import ProfileSubject, SamplesSource
from services.registry.infra.model_card import ModelCard, read_model_card

_MAX_TEXTS = 20

_TOOL_TAGS = frozenset(
    {
        "adapter", "adapters", "arxiv", "autotrain", "axolotl", "base_model", "conversational", "dataset", "dpo", "en",
        "endpoints_compatible", "finetuned", "generated_from_trainer", "grpo", "license", "llama", "llama-factory",
        "lora", "mistral", "peft", "pytorch", "qlora", "qwen", "qwen2", "region", "safetensors", "sft", "tensorboard",
        "text-generation", "text-generation-inference", "transformers", "trl", "unsloth",
    }
)  # fmt: skip
"""Tags that name tools, formats and bases: every second adapter has them."""


class CardTexts:
    """See `ProfileTexts`."""

    source = SamplesSource.CARD

    async def texts(self, subject: ProfileSubject) -> tuple[str, ...]:
        """See `ProfileTexts.texts`; asks nobody, so it is never away."""
        if subject.card is None:
            return ()
        card = await asyncio.to_thread(read_model_card, subject.card)
        return _texts_of(card, subject.adapter_name)


def _texts_of(card: ModelCard, adapter_name: str) -> tuple[str, ...]:
    tags = [tag for tag in card.tags if tag.partition(":")[0].lower() not in _TOOL_TAGS]
    if not (tags or card.examples or card.sentences):
        return ()
    name = " ".join(re.split(r"[-_.\s]+", adapter_name))
    keywords = ", ".join(dict.fromkeys([name, *(tag.replace("-", " ")[:100] for tag in tags[:20])]))
    return tuple(dict.fromkeys([*card.examples, keywords, *card.sentences]))[:_MAX_TEXTS]
