"""The folder format of a testbed: what building writes and every evaluation reads.

    base/                  loads with AutoModelForCausalLM and AutoTokenizer
    adapters/<task>/       PEFT's adapter_config.json and adapter_model.safetensors
    tasks.jsonl            one object a line: task, family, domain, split, prompt, answer; optional kind, wording
    report.json, README.md how it was made and what it scores (informational)

`fit` lines are an adapter's sample texts, `dev` lines are for choosing settings, `test` lines for reporting. A task
without a folder under `adapters/` belongs to the unseen set and has no `fit` lines; one with `fit` lines alone is in
the pool without being asked for. Other data may follow this format.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast, get_args

from hilora.adapter import check_adapter_name
from hilora.errors import InvalidInput

Split = Literal["fit", "dev", "test"]

BASE_FOLDER = "base"
ADAPTERS_FOLDER = "adapters"
TASKS_FILE = "tasks.jsonl"
REPORT_FILE = "report.json"
README_FILE = "README.md"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskLine:
    """One line of `tasks.jsonl`."""

    task: str
    family: str
    domain: str
    split: Split
    prompt: str
    answer: str
    kind: str = ""
    """Why the task is in the pool, where the testbed says; scores are reported by it as well."""
    wording: str = ""
    """`held_out` for a wording that no `fit` line uses, where the testbed says."""


HELD_OUT_WORDING = "held_out"
_OPTIONAL = frozenset({"kind", "wording"})


@dataclass(frozen=True, kw_only=True)
class Testbed:
    """A checked testbed folder."""

    folder: Path
    lines: tuple[TaskLine, ...]

    __test__ = False  # the name begins with "Test": not for pytest to collect

    @property
    def base_folder(self) -> Path:
        """The base model and its tokenizer."""
        return self.folder / BASE_FOLDER

    @property
    def task_names(self) -> tuple[str, ...]:
        """Every task, in the order of the file."""
        return tuple(dict.fromkeys(line.task for line in self.lines))

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """The tasks that have an adapter, in the order of the file."""
        return tuple(name for name in self.task_names if self.adapter_folder(name).is_dir())

    @property
    def unseen_task_names(self) -> tuple[str, ...]:
        """The tasks that have none."""
        return tuple(name for name in self.task_names if not self.adapter_folder(name).is_dir())

    def adapter_folder(self, task: str) -> Path:
        """Where a task's adapter is, if it has one."""
        return self.folder / ADAPTERS_FOLDER / task

    def lines_of(self, task: str, split: Split) -> tuple[TaskLine, ...]:
        """A task's lines of one split."""
        return tuple(line for line in self.lines if line.task == task and line.split == split)

    def family_of(self, task: str) -> str:
        """The family a task belongs to.

        Raises:
            InvalidInput: `unknown_task`.
        """
        for line in self.lines:
            if line.task == task:
                return line.family
        raise InvalidInput(f"The testbed has no task {task!r}.", code="unknown_task", place=task)


def write_task_lines(lines: Iterable[TaskLine], path: Path) -> None:
    """Write `tasks.jsonl`."""
    records = (
        {name: value for name, value in asdict(line).items() if value or name not in _OPTIONAL} for line in lines
    )
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records), encoding="utf-8")


def read_testbed(folder: Path) -> Testbed:
    """Read and check a testbed.

    Raises:
        InvalidInput: `invalid_testbed`, naming the file and line that break the format.
    """
    tasks_path = folder / TASKS_FILE
    if not tasks_path.is_file():
        raise _invalid(f"{folder} is not a testbed: it has no {TASKS_FILE}.", tasks_path)
    texts = tasks_path.read_text(encoding="utf-8").splitlines()
    lines = tuple(_parse(text, f"{tasks_path}:{number}") for number, text in enumerate(texts, start=1) if text.strip())
    testbed = Testbed(folder=folder, lines=lines)
    _check(testbed)
    return testbed


def _parse(text: str, place: str) -> TaskLine:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise _invalid(f"{place} is not JSON: {error}.", place) from error
    names = [field.name for field in fields(TaskLine)]
    if not isinstance(record, dict):
        raise _invalid(f"{place} is not a JSON object.", place)
    values = cast("dict[str, object]", record)
    missing = [name for name in names if not isinstance(values.get(name, "" if name in _OPTIONAL else None), str)]
    if missing:
        raise _invalid(f"{place} lacks the text field(s) {', '.join(missing)}.", place)
    if values["split"] not in get_args(Split):
        raise _invalid(f"{place} has the split {values['split']!r}; known are {', '.join(get_args(Split))}.", place)
    return TaskLine(**cast("dict[str, Any]", {name: values[name] for name in names if name in values}))


def _check(testbed: Testbed) -> None:
    if not testbed.lines:
        raise _invalid(f"{testbed.folder / TASKS_FILE} has no lines.", testbed.folder / TASKS_FILE)
    if not (testbed.base_folder / "config.json").is_file():
        raise _invalid(f"{testbed.base_folder} holds no model.", testbed.base_folder)
    seen: dict[str, TaskLine] = {}
    for line in testbed.lines:
        other = seen.setdefault(line.prompt, line)
        # Sample texts may be copied by another adapter; what is asked must not be among anybody's.
        if (other.task, other.split) != (line.task, line.split) and (other.split, line.split) != ("fit", "fit"):
            raise _invalid(f"The prompt {line.prompt!r} is in {other.split} and in {line.split}.", TASKS_FILE)
    for task in testbed.adapter_names:
        check_adapter_name(task)
        _check_adapter(testbed, task)
    for task in testbed.unseen_task_names:
        if testbed.lines_of(task, "fit"):
            raise _invalid(f"Task {task!r} has fit lines but no adapter.", testbed.adapter_folder(task))


def _check_adapter(testbed: Testbed, task: str) -> None:
    folder = testbed.adapter_folder(task)
    absent = [name for name in ADAPTER_FILES if not (folder / name).is_file()]
    if absent:
        raise _invalid(f"The adapter of {task!r} lacks {', '.join(absent)}.", folder)
    if not testbed.lines_of(task, "fit"):
        raise _invalid(f"Task {task!r} has an adapter but no fit lines.", folder)


def folder_size_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _invalid(message: str, place: object) -> InvalidInput:
    return InvalidInput(
        message,
        code="invalid_testbed",
        remedy="The format is described in hilora_lab/testbed/folder.py; `hilora lab build-testbed` writes one.",
        place=str(place),
    )
