"""Reads prompts out of a data set's file: JSON, JSON lines or CSV of a stranger, already on disk and small.

Which column holds the prompts, only its name says; the answers are of no use for routing.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

DATA_SUFFIXES = (".jsonl", ".json", ".csv")
"""What is read. No format of these can run code, and none unfolds into more than it is."""

_PROMPT_COLUMNS = ("prompt", "instruction", "question", "input", "text")
_MAX_TEXTS = 20
_MAX_CHARACTERS = 4096
_SEED = 0


def prompts_of(path: Path, *, suffix: str) -> tuple[str, ...]:
    """Twenty prompts of a file, drawn at random but always the same; none if it has no column that we know.

    Args:
        path: the file.
        suffix: one of `DATA_SUFFIXES`: what its name says it is.
    """
    try:
        prompts = list(dict.fromkeys(text for row in _rows(path, suffix) if (text := _prompt_of(row))))
    except (ValueError, RecursionError, csv.Error):
        return ()
    return tuple(random.Random(_SEED).sample(prompts, min(_MAX_TEXTS, len(prompts))))  # noqa: S311  (no secret)


def _rows(path: Path, suffix: str) -> Iterable[Mapping[str, Any]]:
    if suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as stream:
            yield from csv.DictReader(stream)
        return
    text = path.read_text(encoding="utf-8")
    try:
        whole: Any = json.loads(text)
    except ValueError:
        # Many files called .json hold one object a line.
        whole = [json.loads(line) for line in text.split("\n") if line.strip()]
    if isinstance(whole, dict) and _prompt_of(cast("dict[str, Any]", whole)) is None:
        lists = [value for value in cast("dict[str, Any]", whole).values() if isinstance(value, list)]
        whole = lists[0] if lists else []
    for row in cast("list[Any]", whole) if isinstance(whole, list) else [whole]:
        if isinstance(row, dict):
            yield cast("dict[str, Any]", row)


def _prompt_of(row: Mapping[str, Any]) -> str | None:
    by_name = {name.strip().lower(): value for name, value in row.items() if isinstance(name, str)}  # pyright: ignore[reportUnnecessaryIsInstance]  (csv puts surplus cells under None)
    for column in _PROMPT_COLUMNS:
        value = by_name.get(column)
        if isinstance(value, str) and value.strip():
            context = by_name.get("input") if column == "instruction" else None
            joined = f"{value}\n{context}" if isinstance(context, str) and context.strip() else value
            return joined.strip()[:_MAX_CHARACTERS].encode("utf-8", "ignore").decode()
    return None
