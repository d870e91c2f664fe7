"""Real task texts as a pool to route over: what each adapter was shown, and the queries that are asked.

A file has one JSON object a line, plain or gzipped: `task`, `cluster`, `split`, `text`, `input_only`. Rows of the split
`fit` are the sample texts of the task's adapter; those of the query split are asked, if they name a task.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from hilora.errors import InvalidInput

TextField = Literal["text", "input_only"]
"""The whole request, or the request without its instruction; where a row has none of the second, the first."""

_FIT_SPLIT = "fit"


class Encodes(Protocol):
    """A sentence encoder."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors `[N, E]`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Some texts with their embeddings."""

    texts: tuple[str, ...]
    embeddings_NE: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: NDArray[np.intp]) -> Texts:
        """Those of some rows."""
        return Texts(texts=tuple(self.texts[row] for row in rows), embeddings_NE=self.embeddings_NE[rows])


@dataclass(frozen=True, kw_only=True)
class RoutingTask:
    """A task whose adapter stands in the pool."""

    name: str
    cluster: str


@dataclass(frozen=True, kw_only=True)
class RoutingData:
    """A pool and its queries, embedded."""

    tasks: tuple[RoutingTask, ...]
    samples: Texts
    """Of all tasks, task by task."""
    sample_task_N: NDArray[np.intp]
    """Whose sample each is: a place in `tasks`, rising."""
    queries: Texts
    query_task_N: NDArray[np.intp]

    @property
    def ordinals(self) -> NDArray[np.intp]:
        """The place of each sample among its task's."""
        starts = np.searchsorted(self.sample_task_N, np.arange(len(self.tasks)))
        return np.arange(len(self.sample_task_N)) - starts[self.sample_task_N]


def read_routing_data(
    path: Path, encoder: Encodes, *, query_split: str, field: TextField, samples: Sequence[int] = ()
) -> RoutingData:
    """Read and embed a file.

    Args:
        path: `.jsonl` or `.jsonl.gz`.
        encoder: embeds each distinct text once.
        query_split: which rows are asked.
        field: what of a row is read, of samples and queries alike.
        samples: how many of the samples the first, second, ... task keeps, from the beginning again after the last;
            all of them without.

    Raises:
        InvalidInput: `invalid_routing_data`: not such a file, no samples, or no queries.
    """
    rows = list(_rows(path))
    cluster_of = {row["task"]: str(row.get("cluster") or "") for row in rows if row["split"] == _FIT_SPLIT}
    tasks = tuple(RoutingTask(name=name, cluster=cluster_of[name]) for name in sorted(cluster_of))
    place_of = {task.name: place for place, task in enumerate(tasks)}
    texts_of: list[list[str]] = [[] for _ in tasks]
    asked: list[tuple[str, int]] = []
    for row in rows:
        text = row.get(field) or row["text"]
        if row["split"] == _FIT_SPLIT:
            texts_of[place_of[row["task"]]].append(text)
        elif row["split"] == query_split and row["task"] in place_of:
            asked.append((text, place_of[row["task"]]))
    if not tasks or not asked:
        raise _invalid(
            path, f"has {len(tasks)} tasks with samples and {len(asked)} queries of {query_split!r} for them"
        )
    for place, texts in enumerate(texts_of):
        if samples:
            del texts[samples[place % len(samples)] :]
    sample_texts = [text for texts in texts_of for text in texts]
    query_texts = [text for text, _ in asked]
    distinct = sorted({*sample_texts, *query_texts}, key=lambda text: (len(text), text))
    vectors = encoder.encode(distinct)
    row_of = {text: row for row, text in enumerate(distinct)}

    def embedded(texts: Sequence[str]) -> Texts:
        return Texts(texts=tuple(texts), embeddings_NE=vectors[[row_of[text] for text in texts]])

    return RoutingData(
        tasks=tasks,
        samples=embedded(sample_texts),
        sample_task_N=np.repeat(np.arange(len(tasks)), [len(texts) for texts in texts_of]),
        queries=embedded(query_texts),
        query_task_N=np.array([place for _, place in asked], dtype=np.intp),
    )


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row: Any = json.loads(line)
            except ValueError as error:
                raise _invalid(path, f"has no JSON in line {number}") from error
            is_row = isinstance(row, dict) and isinstance(row.get("text"), str) and {"task", "split"} <= row.keys()
            if not is_row or (row["split"] == _FIT_SPLIT and not isinstance(row["task"], str)):
                raise _invalid(path, f"has no task, split and text in line {number}")
            yield row


def _invalid(path: Path, what: str) -> InvalidInput:
    return InvalidInput(
        f"{path.name} {what}.",
        code="invalid_routing_data",
        remedy="One JSON object a line with task, cluster, split (`fit` for samples), text and input_only.",
        place="data",
    )
