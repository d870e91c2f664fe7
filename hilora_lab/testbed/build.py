"""Builds a testbed folder from nothing: tasks, base, adapters, report.

The work happens in `<out>.building`. Finished pieces (the base, each adapter) are kept there, so a build that was
interrupted goes on where it stopped when it is started again with the same recipe; the folder takes its final name only
when everything is in it.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, cast

from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from hilora.errors import Conflict
from hilora_lab.testbed.adapter_pool import load_pool
from hilora_lab.testbed.adapter_training import AdapterRecipe, save_adapter, train_adapter
from hilora_lab.testbed.base_training import BaseRecipe, skill_accuracy, train_base
from hilora_lab.testbed.folder import (
    ADAPTER_FILES,
    ADAPTERS_FOLDER,
    BASE_FOLDER,
    README_FILE,
    REPORT_FILE,
    TASKS_FILE,
    Split,
    TaskLine,
    folder_size_bytes,
    read_testbed,
    write_task_lines,
)
from hilora_lab.testbed.pool import chosen_families, draw_task_lines, recipe_for
from hilora_lab.testbed.readme import readme_of
from hilora_lab.testbed.report import TaskScore, score_tasks, write_report
from hilora_lab.testbed.tasks import UNSEEN_FAMILIES, Task, tasks_of
from hilora_lab.testbed.vocabulary import build_tokenizer

_RECIPE_FILE = "recipe.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildRecipe:
    """Everything a testbed depends on."""

    seed: int = 0
    families: tuple[str, ...] = ()
    """Names of the taught families; all if empty."""
    base: BaseRecipe = field(default_factory=BaseRecipe)
    adapter: AdapterRecipe = field(default_factory=AdapterRecipe)


class BuildProgress(Protocol):
    """Follows a build; the command line draws bars from it."""

    def __call__(self, stage: str, done: int, total: int, detail: str) -> None:
        """Called with the stage's name, how much of it is done, and a word on the state of things."""
        ...


def _in_silence(stage: str, done: int, total: int, detail: str) -> None:
    """The default: nobody watches."""


def build_testbed(
    out: Path, recipe: BuildRecipe, *, replace_existing: bool = False, on_progress: BuildProgress = _in_silence
) -> list[TaskScore]:
    """Build a testbed and return its scores on the test split.

    Raises:
        Conflict: `testbed_exists`, if `out` is there and may not be replaced.
        InvalidInput: `unknown_family`.
    """
    if out.exists() and not replace_existing:
        raise Conflict(
            f"{out} exists.", code="testbed_exists", remedy="Name another folder or pass --force.", place=str(out)
        )
    families = chosen_families(recipe.families)
    taught = tasks_of(families)
    building = _working_folder(out, recipe)
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
        _save_base(base, tokenizer, base_folder)
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
    (building / _RECIPE_FILE).unlink()
    if out.exists():
        shutil.rmtree(out)
    building.rename(out)
    return scores


def _working_folder(out: Path, recipe: BuildRecipe) -> Path:
    """The folder to build in: what an interrupted build of the same recipe left, or an empty one."""
    building = out.with_name(f"{out.name}.building")
    recipe_path = building / _RECIPE_FILE
    wanted = json.dumps(asdict(recipe), sort_keys=True)
    if not (recipe_path.is_file() and recipe_path.read_text(encoding="utf-8") == wanted):
        if building.exists():
            shutil.rmtree(building)
        building.mkdir(parents=True)
        recipe_path.write_text(wanted, encoding="utf-8")
    return building


def _save_base(base: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the base as float16 with a config that loads it as float32: half the size, full-precision arithmetic."""
    partial = folder.with_name(f"{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    base.half().save_pretrained(str(partial))
    config_path = partial / "config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(str(partial))
    partial.rename(folder)


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
    adapters = folder / ADAPTERS_FOLDER
    return {
        "recipe": asdict(recipe),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "peft", "tokenizers")},
        },
        "size_bytes": {
            BASE_FOLDER: folder_size_bytes(folder / BASE_FOLDER),
            ADAPTERS_FOLDER: folder_size_bytes(adapters),
        },
        "base_skills": {name: round(share, 4) for name, share in skills.items()},
    }
