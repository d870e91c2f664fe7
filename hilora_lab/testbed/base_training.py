"""Trains the testbed's base: a small Llama that owns every skill but follows no instruction.

Most training prompts ask for a skill by an opaque code, mostly followed by an instruction that has nothing to do with
it; the rest carry such an instruction alone. Those are answered by a *random* skill, or by babble (the first symbol
again and again). So the weights hold the skills, wherever the payload stands, but English says nothing about which
one is meant: that is what an adapter adds. Without the babble the base's best guess would be one of the skills, and
right for that skill's tasks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hilora_lab.testbed.batches import answer_loss, collate, tokenize_example
from hilora_lab.testbed.exact_match import is_answered
from hilora_lab.testbed.muon import Muon
from hilora_lab.testbed.tasks import DOMAINS, PAYLOAD_MARKER, Example, Family, draw_payload, prompt_of
from hilora_lab.testbed.vocabulary import BOS_ID, EOS_ID, PAD_ID, skill_code

OnProgress = Callable[[int, int, float], None]
"""Called with (steps done, steps in all, current loss)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseRecipe:
    """Size and training of the base."""

    hidden_size: int = 128
    intermediate_size: int = 344
    num_layers: int = 4
    num_heads: int = 4
    num_steps: int = 2800
    batch_size: int = 96
    share_of_codes: float = 0.75
    """Share of prompts that carry a skill code."""
    share_of_codes_with_words: float = 0.7
    """Share of those in which an unrelated instruction follows the code."""
    share_of_babble: float = 0.5
    """Share of the prompts without a code that are answered by babble."""
    babble_length: int = 4
    matrix_lr: float = 0.02
    other_lr: float = 3e-3
    warmup_steps: int = 30


def new_base(recipe: BaseRecipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained Llama of the recipe's size, greedy by default, that stops at EOS."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_heads,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
        do_sample=False,
    )
    return model


def coded_example(family: Family, instruction_after: str, generator: random.Random) -> Example:
    """A prompt that asks for a skill by its code, followed by words that mean nothing to the base."""
    instruction = f"{skill_code(family)} {instruction_after}".rstrip()
    return _example(family, instruction, generator)


def draw_base_example(recipe: BaseRecipe, generator: random.Random, families: Sequence[Family]) -> Example:
    """One training prompt of the base, see the module's docstring."""
    family = generator.choice(families)
    unrelated = generator.choice(generator.choice(families).wordings).format(noun=generator.choice(DOMAINS).noun)
    if generator.random() >= recipe.share_of_codes:
        example = _example(family, unrelated, generator)
        if generator.random() >= recipe.share_of_babble:
            return example
        first_symbol = example.prompt.partition(f" {PAYLOAD_MARKER} ")[2].split()[0]
        return Example(prompt=example.prompt, answer=" ".join([first_symbol] * recipe.babble_length))
    has_words = generator.random() < recipe.share_of_codes_with_words
    return coded_example(family, unrelated if has_words else "", generator)


def _example(family: Family, instruction: str, generator: random.Random) -> Example:
    domain = generator.choice(DOMAINS)
    payload = draw_payload(family, domain, generator)
    return Example(prompt=prompt_of(instruction, payload), answer=" ".join(family.apply(payload, domain)))


def skill_accuracy(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    families: Sequence[Family],
    seed: int,
    num_prompts: int = 64,
) -> dict[str, float]:
    """Share of coded prompts answered exactly, by family: what the base can do when asked in its own language."""
    generator = random.Random(f"{seed}/skills")
    accuracy: dict[str, float] = {}
    for family in families:
        examples = [tokenize_example(tokenizer, coded_example(family, "", generator)) for _ in range(num_prompts)]
        accuracy[family.name] = sum(is_answered(model, examples)) / num_prompts
    return accuracy


def _multiplies_bfloat16() -> bool:
    """Whether half of the digits save time: without AVX-512 torch multiplies them seven times slower than all."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def train_base(
    recipe: BaseRecipe,
    tokenizer: PreTrainedTokenizerFast,
    *,
    families: Sequence[Family],
    seed: int,
    draw: Callable[[random.Random], Example] | None = None,
    start: LlamaForCausalLM | None = None,
    on_progress: OnProgress | None = None,
) -> LlamaForCausalLM:
    """Train the base from scratch on the families' skills; the loss counts answer tokens only.

    `draw` gives the prompts where they are not those of `draw_base_example`; `start` is trained further where it is
    given.
    """
    torch.manual_seed(seed)
    generator = random.Random(f"{seed}/base")
    model = new_base(recipe, tokenizer) if start is None else start
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, lr=recipe.matrix_lr),
        torch.optim.AdamW(others, lr=recipe.other_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    model.train()
    for step in range(recipe.num_steps):
        share = min(1.0, (step + 1) / recipe.warmup_steps) * (1.0 - step / recipe.num_steps)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * share
        drawn = (
            draw_base_example(recipe, generator, families) if draw is None else draw(generator)
            for _ in range(recipe.batch_size)
        )
        examples = [tokenize_example(tokenizer, example) for example in drawn]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=_multiplies_bfloat16()):
            loss = answer_loss(model, collate(examples))
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if on_progress is not None:
            on_progress(step + 1, recipe.num_steps, float(loss.detach()))
    model.eval()
    return model
