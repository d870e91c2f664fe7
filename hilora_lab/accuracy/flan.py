"""The public FLAN-v2 pools as a testbed folder: adapters through the registry's own door to the hub, rows of a file.

Two pools are public: 48 adapters of LLaMA-2-7B (LoraRetriever, arXiv 2402.09997), and those of FLAN-T5-large
(LoraHub, arXiv 2307.13269). What is written is a folder in the testbed format, so that every benchmark of this package
runs on it. The endpoint is the one of `HF_ENDPOINT`, a token that of `HF_TOKEN`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hilora.errors import HiloraError, InvalidInput
from hilora_lab.testbed.folder import (
    ADAPTER_FILES,
    ADAPTERS_FOLDER,
    BASE_FOLDER,
    TASKS_FILE,
    Split,
    TaskLine,
    write_task_lines,
)
from services.registry.infra.hub_source import HubSource
from services.registry.infra.transfer import FetchLimits

_CLUSTERS: Mapping[str, tuple[str, ...]] = {
    "struct_to_text": ("common_gen", "dart", "e2e_nlg", "web_nlg_en"),
    "translation": (
        "para_crawl_enes",
        "wmt14_enfr",
        *(f"wmt16_translate_{pair}" for pair in ("csen", "deen", "fien", "roen", "ruen", "tren")),
    ),
    "commonsense": ("copa", "hellaswag", "piqa", "story_cloze"),
    "sentiment": ("imdb_reviews", "sentiment140", "sst2", "yelp_polarity_reviews"),
    "reading_comprehension": ("bool_q", "drop", "multirc", "openbookqa", "squad_v1", "squad_v2"),
    "closed_book_qa": ("arc_challenge", "arc_easy", "natural_questions", "trivia_qa"),
    "coreference": ("definite_pronoun_resolution", "wsc"),
    "reading_with_commonsense": ("cosmos_qa", "record"),
    "paraphrase": ("glue_mrpc", "glue_qqp", "paws_wiki", "stsb"),
    "nli": (
        *("anli_r1", "anli_r2", "anli_r3", "cb", "glue_qnli"),
        *("mnli_matched", "mnli_mismatched", "rte", "snli", "wnli"),
    ),
}
NUM_FIT = 20
"""Sample texts of an adapter, as in the papers."""
_NUM_DEV = 8
_MAX_ADAPTER_BYTES = 2 << 30
_FETCH_SECONDS = 3600.0
_TEMPLATES = re.compile(r"_\d+templates$")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_BASE_FILES = ("*.json", "*.safetensors", "tokenizer.model", "spiece.model")


@dataclass(frozen=True, kw_only=True, slots=True)
class FlanRecipe:
    """A public pool."""

    base: str
    """The base model on the hub."""
    adapter: str
    """The adapter's repository, `{task}` standing for the task."""
    clusters: Mapping[str, tuple[str, ...]]
    """Tasks by cluster; empty where the data says which tasks there are."""
    prompt: str = "{inputs}"
    """What the adapters were trained to answer, `{inputs}` standing for a row's input."""

    @property
    def cluster_of(self) -> dict[str, str]:
        """By task."""
        return {task: cluster for cluster, tasks in self.clusters.items() for task in tasks}


RECIPES: Mapping[str, FlanRecipe] = {
    "llama2-7b": FlanRecipe(
        base="meta-llama/Llama-2-7b-hf", adapter="Styxxxx/llama2_7b_lora-{task}", clusters=_CLUSTERS
    ),
    "flan-t5-large": FlanRecipe(base="google/flan-t5-large", adapter="lorahub/flan_t5_large-{task}", clusters={}),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FlanRow:
    """One example of the data."""

    task: str
    cluster: str
    inputs: str
    targets: str
    split: str = ""
    """`fit`, `dev` or `test` where the data says."""


@dataclass(frozen=True, kw_only=True)
class FlanPool:
    """What was written."""

    folder: Path
    sources: Mapping[str, str]
    """`owner/name@commit` of each adapter, by task."""
    left_out: Mapping[str, str]
    """Why an adapter is missing, by task."""


def read_rows(path: Path) -> list[FlanRow]:
    """Rows of a JSON or JSON-lines file with the columns `inputs`, `targets`, `task`, and `domain` or `cluster`.

    Raises:
        InvalidInput: `invalid_flan_data`.
    """
    text = path.read_text(encoding="utf-8")
    try:
        loaded: Any = json.loads(text) if text.lstrip().startswith("[") else _json_lines(text)
        return [_row(cast("Mapping[str, Any]", record)) for record in loaded]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(
            f"{path} is no list of examples: {type(error).__name__} {error}.",
            code="invalid_flan_data",
            remedy="Give JSON or JSON lines with inputs, targets, task and domain.",
            place=str(path),
        ) from error


def fetch_pool(
    recipe: FlanRecipe,
    rows: Sequence[FlanRow],
    out: Path,
    *,
    base: Path | None = None,
    tasks: Sequence[str] = (),
    on_task: Callable[[str, str], None] | None = None,
) -> FlanPool:
    """Write the folder. What is there already is kept, so that an interrupted run goes on.

    Args:
        recipe: which pool.
        rows: examples of its tasks.
        out: the folder.
        base: the base model's folder, if it is here; else it is downloaded.
        tasks: only these; all of the recipe's, or of the data's, if empty.
        on_task: told what became of each adapter.

    Raises:
        InvalidInput: `no_flan_adapters`, with the first reason.
    """
    out.mkdir(parents=True, exist_ok=True)
    wanted = tuple(tasks) or tuple(recipe.cluster_of) or tuple(dict.fromkeys(row.task for row in rows))
    source = HubSource(
        is_allowed=True,
        limits=FetchLimits(max_bytes=_MAX_ADAPTER_BYTES, max_seconds=_FETCH_SECONDS),
        cache=out / ".cache",
    )
    sources: dict[str, str] = {}
    left_out: dict[str, str] = {}
    with_rows = {row.task for row in rows}
    for task in wanted:
        if task not in with_rows:
            left_out[task] = "The data has no examples of it."
        else:
            try:
                sources[task] = _fetch(source, recipe, task, out / ADAPTERS_FOLDER / safe_name(task))
            except HiloraError as error:
                left_out[task] = f"{error.code}: {error.message}"
        if on_task is not None:
            on_task(task, left_out.get(task, "fetched"))
    if not sources:
        reason = next(iter(left_out.values()), "no task was asked for")
        raise InvalidInput(f"No adapter could be fetched: {reason}", code="no_flan_adapters", place=recipe.adapter)
    _place_base(recipe, base, out / BASE_FOLDER)
    write_task_lines(_lines(recipe, [row for row in rows if row.task in sources]), out / TASKS_FILE)
    return FlanPool(folder=out, sources=sources, left_out=left_out)


def safe_name(task: str) -> str:
    """A task's name as an adapter may bear it."""
    return _UNSAFE.sub("-", task)


def _json_lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _row(record: Mapping[str, Any]) -> FlanRow:
    return FlanRow(
        task=_TEMPLATES.sub("", str(record["task"])),
        cluster=str(record.get("domain") or record.get("cluster") or ""),
        inputs=str(record["inputs"]).strip(),
        targets=str(record["targets"]).strip(),
        split=str(record.get("split") or ""),
    )


def _in_silence(done_bytes: int, total_bytes: int | None) -> None:
    """Each adapter is told about when it is there."""


def _fetch(source: HubSource, recipe: FlanRecipe, task: str, folder: Path) -> str:
    origin = folder / ".source"
    if origin.is_file() and all((folder / name).is_file() for name in ADAPTER_FILES):
        return origin.read_text(encoding="utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        fetched = source.fetch(recipe.adapter.format(task=task), folder, on_progress=_in_silence)
    except HiloraError:
        # A folder without its files would be taken for an adapter.
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        raise
    origin.write_text(fetched, encoding="utf-8")
    return fetched


def _place_base(recipe: FlanRecipe, base: Path | None, target: Path) -> None:
    if target.exists():
        return
    if base is not None:
        target.symlink_to(base.resolve(), target_is_directory=True)
        return
    from huggingface_hub import snapshot_download

    snapshot_download(recipe.base, local_dir=target, allow_patterns=list(_BASE_FILES))


def _lines(recipe: FlanRecipe, rows: Iterable[FlanRow]) -> list[TaskLine]:
    """The rows as lines. Where the data names no splits, a task's first rows are its samples and the next ones for
    choosing; a prompt that came before is dropped."""
    counts: dict[str, int] = {}
    seen: set[str] = set()
    lines: list[TaskLine] = []
    for row in rows:
        prompt = recipe.prompt.format(inputs=row.inputs)
        if prompt in seen or not row.targets:
            continue
        seen.add(prompt)
        place = counts[row.task] = counts.get(row.task, 0) + 1
        lines.append(
            TaskLine(
                task=safe_name(row.task),
                family=recipe.cluster_of.get(row.task) or row.cluster or "flan",
                domain="text",
                split=_split_of(row, place),
                prompt=prompt,
                answer=row.targets,
            )
        )
    return lines


def _split_of(row: FlanRow, place: int) -> Split:
    if row.split in {"fit", "dev", "test"}:
        return cast("Split", row.split)
    if place <= NUM_FIT:
        return "fit"
    return "dev" if place <= NUM_FIT + _NUM_DEV else "test"
