"""Bars of what is being done, on a console."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


@contextmanager
def progress_bars(
    console: Console, *, width: int = 12, hides_done: bool = False
) -> Iterator[Callable[[str, int, int], None]]:
    """Bars while a context lasts, one for every title.

    Args:
        console: where they are drawn.
        width: room for the titles, in characters.
        hides_done: whether a bar goes away once it is full.

    Yields:
        What is told a title, how much is done, and of how much.
    """
    columns = (TextColumn(f"{{task.description:<{width}}}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bars: dict[str, TaskID] = {}

        def on_progress(title: str, done: int, total: int) -> None:
            if title not in bars:
                bars[title] = progress.add_task(title, total=total)
            progress.update(bars[title], completed=done, visible=not hides_done or done < total)

        yield on_progress
