"""What the base of the larger testbed is taught: single skills and pairs of them, by their codes.

As in `base_training`, codes say which skill is meant and English says nothing. A pair is asked for by two codes, so
that the weights own each combined skill; whether two adapters together ask for one is left to be measured.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from hilora_lab.testbed.base_training import BaseRecipe
from hilora_lab.testbed.batches import tokenize_example
from hilora_lab.testbed.exact_match import is_answered
from hilora_lab.testbed.large_pool import Composition
from hilora_lab.testbed.tasks import DOMAINS, Example, Family, draw_payload, prompt_of
from hilora_lab.testbed.vocabulary import skill_code


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """What the base may meet."""

    families: tuple[Family, ...]
    pairs: tuple[Composition, ...]
    instructions: tuple[str, ...]
    """Everything English that any prompt says, the nouns filled in; without meaning to the base."""
    share_of_pairs: float = 0.45

    def draw(self, recipe: BaseRecipe, generator: random.Random) -> Example:
        """One training prompt."""
        unrelated = generator.choice(self.instructions)
        has_code = generator.random() < recipe.share_of_codes
        codes, family = self._skill(generator)
        if has_code:
            has_words = generator.random() < recipe.share_of_codes_with_words
            return asked(family, f"{codes} {unrelated}" if has_words else codes, generator)
        example = asked(family, unrelated, generator)
        if generator.random() >= recipe.share_of_babble:
            return example
        first_symbol = example.prompt.partition(" : ")[2].split()[0]
        return Example(prompt=example.prompt, answer=" ".join([first_symbol] * recipe.babble_length))

    def _skill(self, generator: random.Random) -> tuple[str, Family]:
        if self.pairs and generator.random() < self.share_of_pairs:
            pair = generator.choice(self.pairs)
            return f"{skill_code(pair.first)} {skill_code(pair.second)}", pair.family()
        family = generator.choice(self.families)
        return skill_code(family), family


def curriculum_of(families: Sequence[Family], pairs: Sequence[Composition], others: Sequence[Family]) -> Curriculum:
    """The curriculum of some skills; `others` are families whose wordings are met as well."""
    said = [*families, *(pair.family() for pair in pairs), *others]
    return Curriculum(
        families=tuple(families),
        pairs=tuple(pairs),
        instructions=tuple(
            wording.format(noun=domain.noun) for family in said for wording in family.wordings for domain in DOMAINS
        ),
    )


def carried_over(
    base: LlamaForCausalLM, words: Mapping[str, int], new: LlamaForCausalLM, ids: Mapping[str, int]
) -> int:
    """Give a new base of the same shape what another one learned; returns how many words both know.

    Args:
        base: the one that learned.
        words: its vocabulary, word to id.
        new: the one that is written to; words that only it knows keep their random vectors.
        ids: its vocabulary.
    """
    shared = [(words[word], ids[word]) for word in ids if word in words]
    rows_of = {"model.embed_tokens.weight", "lm_head.weight"}
    learned = base.state_dict()
    for name, weight in new.state_dict().items():
        if name in rows_of:
            weight[[new_id for _, new_id in shared]] = learned[name][[old_id for old_id, _ in shared]]
        else:
            weight.copy_(learned[name])
    return len(shared)


def asked(family: Family, instruction: str, generator: random.Random) -> Example:
    """A prompt of a random payload in a random domain, answered by a skill."""
    domain = generator.choice(DOMAINS)
    payload = draw_payload(family, domain, generator)
    return Example(prompt=prompt_of(instruction, payload), answer=" ".join(family.apply(payload, domain)))


def pair_accuracy(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    pairs: Sequence[Composition],
    seed: int,
    num_prompts: int = 64,
) -> dict[str, float]:
    """Share of prompts with two codes answered exactly, by pair."""
    generator = random.Random(f"{seed}/pairs")
    accuracy: dict[str, float] = {}
    for pair in pairs:
        codes = f"{skill_code(pair.first)} {skill_code(pair.second)}"
        examples = [tokenize_example(tokenizer, asked(pair.family(), codes, generator)) for _ in range(num_prompts)]
        accuracy[pair.name] = sum(is_answered(model, examples)) / num_prompts
    return accuracy
