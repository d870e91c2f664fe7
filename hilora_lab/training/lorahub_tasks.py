"""LoraHub's factors for every task of a testbed, as a folder: what a table of many tasks needs.

    <task>.json               searched with the task's own adapter among the drawn
    <task>.without-own.json   searched anew without it; of tasks that have an adapter

The paper draws adapters by chance. That the own one is always among them is [ours], and kind to the method: in a pool
larger than the draw it would often be missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hilora.adapter import LoRAAdapter
from hilora_lab.testbed.batches import TokenizedExample
from hilora_lab.training.lorahub import LorahubRecipe, draw_adapters, learn_weights, write_weights
from services.router.infra.weights_file import read_weights

OnTask = Callable[[str, int, int], None]
"""Called with (the file that was written, done, in all)."""

_SUFFIX = ".json"
_WITHOUT_OWN = ".without-own.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskDraw:
    """Whose factors are searched for one task, and the file that they go to."""

    task: str
    file_name: str
    names: tuple[str, ...]


def file_name_of(task: str, *, has_own: bool) -> str:
    """The file of a task's factors."""
    return f"{task}{_SUFFIX if has_own else _WITHOUT_OWN}"


def read_task_weights(folder: Path) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """The factors of every task, and those that were searched without the task's own adapter.

    Raises:
        InvalidInput: `invalid_weights_file`.
    """
    with_own: dict[str, dict[str, float]] = {}
    without_own: dict[str, dict[str, float]] = {}
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        if path.name.endswith(_WITHOUT_OWN):
            without_own[path.name.removesuffix(_WITHOUT_OWN)] = read_weights(path)
        else:
            with_own[path.name.removesuffix(_SUFFIX)] = read_weights(path)
    return with_own, without_own


def draws_of(tasks: Iterable[str], adapters: Iterable[str], *, num_drawn: int, seed: int) -> list[TaskDraw]:
    """What has to be searched: every task once, and once more without its own adapter where it has one."""
    pool = set(adapters)
    found: list[TaskDraw] = []
    for task in tasks:
        others = draw_adapters(pool - {task}, num_drawn, seed=seed)
        if task not in pool:
            found.append(TaskDraw(task=task, file_name=file_name_of(task, has_own=True), names=tuple(others)))
            continue
        own = (task, *others[: num_drawn - 1])
        found.append(TaskDraw(task=task, file_name=file_name_of(task, has_own=True), names=own))
        found.append(TaskDraw(task=task, file_name=file_name_of(task, has_own=False), names=tuple(others)))
    return found


def learn_each_task(
    model: torch.nn.Module,
    adapters: Mapping[str, LoRAAdapter],
    examples: Mapping[str, Sequence[TokenizedExample]],
    folder: Path,
    *,
    num_drawn: int,
    recipe: LorahubRecipe,
    on_task: OnTask | None = None,
) -> list[str]:
    """Search the factors of every task, and write them; the files' names.

    Args:
        model: the base, a transformers model.
        adapters: the pool by name.
        examples: by task, whether it has an adapter or not.
        folder: where the files go; files that are there already are kept, so that an interrupted search goes on.
        num_drawn: adapters that take part.
        recipe: evaluations, seed.
        on_task: told after each file.

    Raises:
        InvalidInput: `too_little_to_learn`.
    """
    draws = draws_of(examples, adapters, num_drawn=num_drawn, seed=recipe.seed)
    folder.mkdir(parents=True, exist_ok=True)
    for idx, draw in enumerate(draws):
        path = folder / draw.file_name
        if not path.exists():
            drawn = {name: adapters[name] for name in draw.names}
            write_weights(learn_weights(model, drawn, examples[draw.task], recipe=recipe), path)
        if on_task is not None:
            on_task(draw.file_name, idx + 1, len(draws))
    return [draw.file_name for draw in draws]
