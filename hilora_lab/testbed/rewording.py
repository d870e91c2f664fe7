"""A testbed beside another one that asks for the same tasks in words that no sample text uses.

Base and adapters are those of the original, by symbolic link. Words that its tokenizer does not know become its mark
for unknown ones: the encoder reads them all the same, and an adapter of one skill hardly looks at the instruction.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from hilora.errors import Conflict
from hilora_lab.testbed.folder import (
    ADAPTERS_FOLDER,
    BASE_FOLDER,
    HELD_OUT_WORDING,
    TASKS_FILE,
    Split,
    TaskLine,
    Testbed,
    write_task_lines,
)
from hilora_lab.testbed.large_pool import held_out
from hilora_lab.testbed.tasks import DOMAINS, TAUGHT_FAMILIES, Task, draw_example

_NUM_LINES: dict[Split, int] = {"dev": 8, "test": 12}


def write_reworded(testbed: Testbed, out: Path, *, seed: int) -> Path:
    """Write the folder: all lines of the original, and more of its taught tasks in held-out wordings.

    Raises:
        Conflict: `testbed_exists`.
    """
    if out.exists():
        raise Conflict(f"{out} exists.", code="testbed_exists", remedy="Name another folder.", place=str(out))
    out.mkdir(parents=True)
    for name in (BASE_FOLDER, ADAPTERS_FOLDER):
        (out / name).symlink_to((testbed.folder / name).resolve(), target_is_directory=True)
    lines = list(testbed.lines)
    used = {line.prompt for line in lines}
    for family in TAUGHT_FAMILIES:
        for domain in DOMAINS:
            task = Task(family=held_out(family), domain=domain)
            if task.name in testbed.adapter_names:
                lines += _reworded(task, used, seed=seed)
    write_task_lines(lines, out / TASKS_FILE)
    return out


def _reworded(task: Task, used: set[str], *, seed: int) -> list[TaskLine]:
    generator = random.Random(f"{seed}/reworded/{task.name}")
    lines: list[TaskLine] = []
    for split, num_lines in _NUM_LINES.items():
        for idx in range(num_lines):
            example = draw_example(task, generator, wording_idx=idx)
            while example.prompt in used:
                example = draw_example(task, generator, wording_idx=idx)
            used.add(example.prompt)
            line = TaskLine(
                task=task.name,
                family=task.family.name,
                domain=task.domain.name,
                split=split,
                prompt=example.prompt,
                answer=example.answer,
            )
            lines.append(replace(line, wording=HELD_OUT_WORDING))
    return lines
