"""The questions of a testbed by setting, embedded once.

`id`: the task's own adapter is in the pool. `ood`: the same lines, and it is not. `unseen`: tasks that no adapter was
made for. Where the testbed says more of its lines, two settings are taken out of these: `new_wording`, lines in words
that no sample text uses, and `two_skill`, tasks without an adapter whose two halves have one each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hilora_lab.evaluation.offline import Encodes
from hilora_lab.testbed.folder import HELD_OUT_WORDING, Split, TaskLine, Testbed

AccuracySetting = Literal["id", "ood", "unseen", "new_wording", "two_skill"]
SETTINGS: tuple[AccuracySetting, ...] = ("id", "ood", "unseen", "new_wording", "two_skill")
TWO_SKILL_KIND = "two_skill_new"
"""`TaskLine.kind` of tasks that only a combination can answer."""


@dataclass(frozen=True, kw_only=True)
class AskedLines:
    """What is asked, by setting; a setting without lines is left out."""

    by_setting: Mapping[AccuracySetting, tuple[TaskLine, ...]]
    embedding_of: Mapping[str, NDArray[np.float32]]
    """By prompt."""

    @property
    def all_lines(self) -> tuple[TaskLine, ...]:
        """Every line once."""
        return tuple({line.prompt: line for lines in self.by_setting.values() for line in lines}.values())


def ask(testbed: Testbed, encoder: Encodes, *, split: Split, limit_per_task: int | None = None) -> AskedLines:
    """The questions of a split.

    Args:
        testbed: the folder.
        encoder: what turns prompts into points.
        split: which lines.
        limit_per_task: at most that many of each task and wording kind.
    """
    own, other, reworded, combined = [], [], [], []
    for task in testbed.task_names:
        lines = testbed.lines_of(task, split)
        known = [line for line in lines if line.wording != HELD_OUT_WORDING][:limit_per_task]
        strange = [line for line in lines if line.wording == HELD_OUT_WORDING][:limit_per_task]
        if testbed.adapter_folder(task).is_dir():
            own += known
            reworded += strange
        elif any(line.kind == TWO_SKILL_KIND for line in lines):
            combined += known
        else:
            other += known
    found: dict[AccuracySetting, Sequence[TaskLine]] = {
        "id": own,
        "ood": own,
        "unseen": other,
        "new_wording": reworded,
        "two_skill": combined,
    }
    prompts = list(dict.fromkeys(line.prompt for lines in found.values() for line in lines))
    return AskedLines(
        by_setting={setting: tuple(lines) for setting, lines in found.items() if lines},
        embedding_of=dict(zip(prompts, encoder.encode(prompts), strict=True)),
    )
