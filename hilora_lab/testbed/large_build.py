"""Builds the larger testbed: more wordings, tasks of two skills, adapters that overlap, and ones that nobody wants.

Like `build_testbed` it goes on where an interrupted build stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from hilora_lab.testbed.adapter_pool import load_pool
from hilora_lab.testbed.adapter_training import AdapterRecipe, save_adapter, train_adapter_on
from hilora_lab.testbed.base_training import BaseRecipe, new_base, skill_accuracy, train_base
from hilora_lab.testbed.building import (
    BuildProgress,
    check_destination,
    in_silence,
    origin,
    publish,
    save_base,
    working_folder,
)
from hilora_lab.testbed.folder import (
    ADAPTER_FILES,
    ADAPTERS_FOLDER,
    BASE_FOLDER,
    README_FILE,
    REPORT_FILE,
    TASKS_FILE,
    Split,
    read_testbed,
    write_task_lines,
)
from hilora_lab.testbed.large_base import carried_over, curriculum_of, pair_accuracy
from hilora_lab.testbed.large_page import large_page
from hilora_lab.testbed.large_pool import (
    PoolMember,
    compositions,
    draw_member_lines,
    held_out,
    large_families,
    large_members,
    unseen_families,
)
from hilora_lab.testbed.report import TaskScore, score_tasks, write_report
from hilora_lab.testbed.vocabulary import build_tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class LargeRecipe:
    """Everything the larger testbed depends on."""

    seed: int = 0
    base: BaseRecipe = field(default_factory=lambda: BaseRecipe(num_steps=3200))
    adapter: AdapterRecipe = field(default_factory=lambda: AdapterRecipe(num_steps=50))
    warm_start: bool = False
    """Whether the base begins with what the base of another testbed learned; then a quarter of the steps will do."""
    only: tuple[str, ...] = ()
    """Names of the members to build, for tests; all if empty."""


def build_large_testbed(
    out: Path,
    recipe: LargeRecipe,
    *,
    warm_base: Path | None = None,
    replace_existing: bool = False,
    on_progress: BuildProgress = in_silence,
) -> list[TaskScore]:
    """Build the larger testbed and return its scores on the test split.

    Args:
        out: the folder.
        recipe: what it depends on.
        warm_base: the base folder of a testbed whose base has the recipe's shape, for a warm start.
        replace_existing: whether what is there may go.
        on_progress: follows the build.

    Raises:
        Conflict: `testbed_exists`, if `out` is there and may not be replaced.
    """
    check_destination(out, replace_existing=replace_existing)
    members = [member for member in large_members(recipe.adapter) if not recipe.only or member.name in recipe.only]
    families = large_families()
    pairs = compositions(families)
    building = working_folder(out, asdict(recipe))
    lines = draw_member_lines(members, seed=recipe.seed)
    write_task_lines(lines, building / TASKS_FILE)

    base_folder = building / BASE_FOLDER
    if not base_folder.is_dir():
        unmeant = [
            *unseen_families(),
            *(held_out(family) for family in families),
            *(pair.family(is_held_out=True) for pair in pairs),
        ]
        curriculum = curriculum_of(families, pairs, unmeant)
        tokenizer = build_tokenizer([*families, *(pair.family() for pair in pairs), *unmeant])
        base = train_base(
            recipe.base,
            tokenizer,
            families=families,
            seed=recipe.seed,
            start=_warm(recipe, tokenizer, warm_base) if recipe.warm_start and warm_base is not None else None,
            draw=lambda generator: curriculum.draw(recipe.base, generator),
            on_progress=lambda done, total, loss: on_progress("base", done, total, f"loss {loss:.3f}"),
        )
        save_base(base, tokenizer, base_folder)
    base = cast("LlamaForCausalLM", AutoModelForCausalLM.from_pretrained(base_folder))
    tokenizer = cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(base_folder))
    skills = {
        **skill_accuracy(base, tokenizer, families=families, seed=recipe.seed),
        **pair_accuracy(base, tokenizer, pairs=pairs, seed=recipe.seed),
    }
    withheld = {line.prompt for line in lines if line.split != "fit"}
    _train_missing(building / ADAPTERS_FOLDER, base, tokenizer, members, withheld, recipe, on_progress)

    testbed = read_testbed(building)
    num_asked = sum(member.has_questions for member in members)
    scores: list[TaskScore] = []

    def on_task(score: TaskScore) -> None:
        scores.append(score)
        on_progress("evaluation", len(scores), num_asked, score.task)

    split: Split = "test"
    score_tasks(testbed, load_pool(testbed), split, on_task)
    provenance = {
        "recipe": asdict(recipe),
        **origin(building),
        "base_skills": {name: round(share, 4) for name, share in skills.items()},
        "kinds": {member.name: member.kind.value for member in members},
    }
    report = write_report(building / REPORT_FILE, provenance=provenance, split=split, scores=scores)
    (building / README_FILE).write_text(large_page(report), encoding="utf-8")
    publish(building, out)
    return scores


def _warm(recipe: LargeRecipe, tokenizer: PreTrainedTokenizerFast, folder: Path) -> LlamaForCausalLM:
    """A base of the recipe with what another one learned."""
    torch.manual_seed(recipe.seed)
    learned = cast("LlamaForCausalLM", AutoModelForCausalLM.from_pretrained(folder))
    words = cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(folder)).get_vocab()
    new = new_base(recipe.base, tokenizer)
    carried_over(learned, words, new, tokenizer.get_vocab())
    return new


def _train_missing(
    folder: Path,
    base: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    members: Sequence[PoolMember],
    withheld: set[str],
    recipe: LargeRecipe,
    on_progress: BuildProgress,
) -> None:
    adapters = [(member, member.recipe) for member in members if member.recipe is not None]
    for place, (member, how) in enumerate(adapters):
        on_progress("adapters", place, len(adapters), member.name)
        if all((folder / member.name / name).is_file() for name in ADAPTER_FILES):
            continue
        model = train_adapter_on(
            base,
            tokenizer,
            member.draw,
            how,
            # Adapters of different people do not start from the same weights.
            seed=recipe.seed * 1000 + place,
            order=f"{recipe.seed}/large/{member.name}/training",
            withheld_prompts=withheld,
        )
        save_adapter(model, folder / member.name)
        base = cast("LlamaForCausalLM", model.unload())
        if member.norm_factor != 1.0:
            _enlarge(folder / member.name, member.norm_factor)
    on_progress("adapters", len(adapters), len(adapters), "done")


def _enlarge(folder: Path, factor: float) -> None:
    """Multiply an adapter's update, in its weights rather than in its config, where anybody would see it."""
    path = folder / "adapter_model.safetensors"
    weights = {
        name: (weight.float() * factor).to(torch.float16) if ".lora_B." in name else weight
        for name, weight in load_file(path).items()
    }
    save_file(weights, path, metadata={"format": "pt"})
