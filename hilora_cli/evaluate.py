"""`hilora eval`: exact match of a running server on a testbed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hilora_cli.server_options import DEFAULT_URL, ApiKeyOption, UrlOption

if TYPE_CHECKING:
    from rich.table import Table

_MEANINGS = {
    "id": "routed, own adapter in the pool",
    "ood": "routed, own adapter removed",
    "unseen": "routed, no adapter was ever made for it",
    "base": "base model alone",
    "oracle": "own adapter pinned",
}


def evaluate(
    testbed: Annotated[Path, typer.Option("--testbed", help="Testbed folder (tasks.jsonl, adapters/).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output.")] = False,
    split: Annotated[str, typer.Option("--split", help="test, dev or fit.")] = "test",
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Requests in flight at once.")] = 8,
    limit_per_task: Annotated[
        int | None, typer.Option("--limit-per-task", min=1, help="At most this many prompts of each task.")
    ] = None,
    url: UrlOption = DEFAULT_URL,
    api_key: ApiKeyOption = None,
) -> None:
    """Ask a running server every prompt of a testbed and compare the answers exactly."""
    import asyncio
    import json
    from typing import cast

    from rich.console import Console

    from hilora_cli.progress_bars import progress_bars
    from hilora_lab.evaluation.served import run_served_evaluation
    from hilora_lab.testbed.folder import Split

    if split not in {"test", "dev", "fit"}:
        raise typer.BadParameter("give test, dev or fit", param_hint="--split")
    with progress_bars(Console(stderr=True), width=8) as on_progress:
        scores = asyncio.run(
            run_served_evaluation(
                url=url,
                testbed=testbed,
                split=cast("Split", split),
                concurrency=concurrency,
                limit_per_task=limit_per_task,
                api_key=api_key,
                on_progress=on_progress,
            )
        )
    if as_json:
        print(json.dumps(scores, indent=2))
    else:
        Console().print(score_table(scores))


def score_table(scores: dict[str, dict[str, Any]]) -> Table:
    """Exact match of each setting."""
    from rich.table import Table

    table = Table("setting", "what it asks", title="Exact match")
    table.add_column("exact match", justify="right")
    table.add_column("prompts", justify="right")
    for setting, score in scores.items():
        table.add_row(setting, _MEANINGS.get(setting, ""), f"{score['exact_match']:.3f}", str(score["n"]))
    return table
