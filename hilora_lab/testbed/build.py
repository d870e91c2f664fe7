"""Builds a testbed folder from nothing: tasks, base, adapters, report.

The work happens in `<out>.building`. Finished pieces (the base, each adapter) are kept there, so a build that was
interrupted goes on where it stopped when it is started again with the same recipe; the folder takes its final name only
when everything is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from hilora_lab.testbed.adapter_pool import load_pool
from hilora_lab.testbed.adapter_training import AdapterRecipe, save_adapter, train_adapter
from hilora_lab.testbed.base_training import BaseRecipe, skill_accuracy, train_base
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
    TaskLine,
    read_testbed,
    write_task_lines,
)
from hilora_lab.testbed.pool import chosen_families, draw_task_lines, recipe_for
from hilora_lab.testbed.readme import readme_of
from hilora_lab.testbed.report import TaskScore, score_tasks, write_report
from hilora_lab.testbed.tasks import UNSEEN_FAMILIES, Task, tasks_of
from hilora_lab.testbed.vocabulary import build_tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildRecipe:
    """Everything a testbed depends on."""

    seed: int = 0
    families: tuple[str, ...] = ()
    """Names of the taught families; all if empty."""
    base: BaseRecipe = field(default_factory=BaseRecipe)
    adapter: AdapterRecipe = field(default_factory=AdapterRecipe)


def build_testbed(
    out: Path, recipe: BuildRecipe, *, replace_existing: bool = False, on_progress: BuildProgress = in_silence
) -> list[TaskScore]:
    """Build a testbed and return its scores on the test split.

    Raises:
        Conflict: `testbed_exists`, if `out` is there and may not be replaced.
        InvalidInput: `unknown_family`.
    """
    check_destination(out, replace_existing=replace_existing)
    families = chosen_families(recipe.families)
    taught = tasks_of(families)
    building = working_folder(out, asdict(recipe))
    lines = [line for task in [*taught, *tasks_of(UNSEEN_FAMILIES)] for line in draw_task_lines(task, seed=recipe.seed)]
    write_task_lines(lines, building / TASKS_FILE)

    base_folder = building / BASE_FOLDER
    if not base_folder.is_dir():
        tokenizer = build_tokenizer()
        base = train_base(
            recipe.base,
            tokenizer,
            families=families,
            seed=recipe.seed,
            on_progress=lambda done, total, loss: on_progress("base", done, total, f"loss {loss:.3f}"),
        )
        save_base(base, tokenizer, base_folder)
    base = cast("LlamaForCausalLM", AutoModelForCausalLM.from_pretrained(base_folder))
    tokenizer = cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(base_folder))
    skills = skill_accuracy(base, tokenizer, families=families, seed=recipe.seed)
    _train_missing_adapters(building / ADAPTERS_FOLDER, base, tokenizer, taught, lines, recipe, on_progress)

    testbed = read_testbed(building)
    num_tasks = len(testbed.task_names)
    scores: list[TaskScore] = []

    def on_task(score: TaskScore) -> None:
        scores.append(score)
        on_progress("evaluation", len(scores), num_tasks, score.task)

    split: Split = "test"
    score_tasks(testbed, load_pool(testbed), split, on_task)
    provenance = _provenance(recipe, skills, building)
    report = write_report(building / REPORT_FILE, provenance=provenance, split=split, scores=scores)
    shown = lines[0]
    page = readme_of(report, prompt=shown.prompt, answer=shown.answer)
    (building / README_FILE).write_text(page, encoding="utf-8")
    publish(building, out)
    return scores


def _train_missing_adapters(
    folder: Path,
    base: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tasks: Sequence[Task],
    lines: Sequence[TaskLine],
    recipe: BuildRecipe,
    on_progress: BuildProgress,
) -> None:
    withheld = {line.prompt for line in lines if line.split != "fit"}
    for task_idx, task in enumerate(tasks):
        on_progress("adapters", task_idx, len(tasks), task.name)
        if all((folder / task.name / name).is_file() for name in ADAPTER_FILES):
            continue
        model = train_adapter(
            base,
            tokenizer,
            task,
            recipe_for(task, recipe.adapter),
            seed=recipe.seed,
            withheld_prompts=withheld,
        )
        save_adapter(model, folder / task.name)
        base = cast("LlamaForCausalLM", model.unload())
    on_progress("adapters", len(tasks), len(tasks), "done")


def _provenance(recipe: BuildRecipe, skills: dict[str, float], folder: Path) -> dict[str, Any]:
    return {
        "recipe": asdict(recipe),
        **origin(folder),
        "base_skills": {name: round(share, 4) for name, share in skills.items()},
    }
