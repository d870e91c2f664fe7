"""Which tasks a testbed holds, how each adapter is made, and the drawing of `tasks.jsonl`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from hilora.errors import InvalidInput
from hilora_lab.testbed.adapter_training import AdapterRecipe
from hilora_lab.testbed.folder import Split, TaskLine
from hilora_lab.testbed.tasks import TAUGHT_FAMILIES, Family, Task, draw_example

LINES_PER_SPLIT: dict[Split, int] = {"fit": 20, "dev": 16, "test": 24}


def chosen_families(names: Sequence[str]) -> tuple[Family, ...]:
    """The taught families named, or all of them if none is.

    Raises:
        InvalidInput: `unknown_family`.
    """
    by_name = {family.name: family for family in TAUGHT_FAMILIES}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise InvalidInput(
            f"No such family: {', '.join(unknown)}.",
            code="unknown_family",
            remedy=f"Choose from {', '.join(by_name)}.",
            place="families",
        )
    return tuple(by_name[name] for name in dict.fromkeys(names)) or TAUGHT_FAMILIES


def recipe_for(task: Task, common: AdapterRecipe) -> AdapterRecipe:
    """The form of a task's adapter: mostly the common one, here and there another that PEFT users write.

    A pool that people share is not uniform: some adapters are rank-stabilised, some have more rank, some less in
    certain modules. Three families of four have such a form in one domain; the scaling stays the common one.
    """
    kind = (TAUGHT_FAMILIES.index(task.family) % 4, task.domain.name)
    rank, scaling = common.lora_rank, common.lora_alpha / common.lora_rank
    if kind == (1, "digits"):
        return replace(common, lora_rank=rank // 2, lora_alpha=round(scaling * (rank // 2) ** 0.5), use_rslora=True)
    if kind == (2, "capitals"):
        half = rank // 2
        return replace(
            common, rank_pattern=(("down_proj", half),), alpha_pattern=(("down_proj", round(scaling * half)),)
        )
    if kind == (3, "letters"):
        return replace(common, lora_rank=2 * rank, lora_alpha=2 * common.lora_alpha)
    return common


def draw_task_lines(task: Task, *, seed: int) -> list[TaskLine]:
    """A task's lines, all prompts different; fit lines go through the wordings in turn.

    A task of an unseen family gets no `fit` lines.
    """
    generator = random.Random(f"{seed}/{task.name}")
    lines: list[TaskLine] = []
    used: set[str] = set()
    for split, num_lines in LINES_PER_SPLIT.items():
        if split == "fit" and not task.family.is_taught:
            continue
        for line_idx in range(num_lines):
            example = draw_example(task, generator, wording_idx=line_idx)
            while example.prompt in used:
                example = draw_example(task, generator, wording_idx=line_idx)
            used.add(example.prompt)
            lines.append(
                TaskLine(
                    task=task.name,
                    family=task.family.name,
                    domain=task.domain.name,
                    split=split,
                    prompt=example.prompt,
                    answer=example.answer,
                )
            )
    return lines
