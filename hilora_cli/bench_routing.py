"""`hilora bench routing`: which scorer puts the right adapter first, on real task texts."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table


class Field(StrEnum):
    """What of a row is read."""

    TEXT = "text"
    INPUT_ONLY = "input_only"


def routing_command(
    data: Annotated[
        Path, typer.Option("--data", exists=True, dir_okay=False, help="Rows: task, cluster, split, text, input_only.")
    ],
    query_split: Annotated[
        str, typer.Option("--query-split", help="The split that is asked; `fit` is the pool.")
    ] = "dev",
    field: Annotated[
        Field, typer.Option("--field", help="Whole requests, or requests without their instruction.")
    ] = Field.TEXT,
    samples: Annotated[
        list[int] | None,
        typer.Option("--samples", min=1, help="Samples of each task; several in turn. [default: all]"),
    ] = None,
    embeddings: Annotated[
        Path | None, typer.Option("--embeddings", dir_okay=False, help="Keep embeddings in this file for the next run.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON to standard output.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", dir_okay=False, help="Write the report to this file as well.")
    ] = None,
) -> None:
    """Compare scorers of the sequence level: does the query's own adapter come first, and how sure is the router?"""
    from rich.console import Console

    from hilora_cli.progress_bars import progress_bars
    from hilora_lab.bench.embedding_cache import CachedEncoder
    from hilora_lab.bench.routing_bench import run_routing_bench
    from hilora_lab.bench.routing_data import read_routing_data
    from hilora_lab.evaluation.embedding import MiniLMEncoder

    console = Console(stderr=True)
    encoder = MiniLMEncoder()
    read = read_routing_data(
        data,
        encoder if embeddings is None else CachedEncoder(encoder, embeddings),
        query_split=query_split,
        field=field.value,
        samples=samples or (),
    )
    with progress_bars(console) as on_progress:
        report = run_routing_bench(read, on_progress=on_progress)
    report = {"data": data.name, "query_split": query_split, "field": field.value, **report}
    content = json.dumps(report, indent=1)
    if out is not None:
        out.write_text(f"{content}\n", encoding="utf-8")
    if as_json:
        typer.echo(content)
    console.print(routing_table(report))
    for warning in report["warnings"]:
        console.print(f"[yellow]{warning}[/]")


def routing_table(report: dict[str, Any]) -> Table:
    """The scorers of a report, the best first."""
    from rich.table import Table

    table = Table(title=f"{report['num_queries']} queries, {report['num_adapters']} adapters")
    table.add_column("scorer", no_wrap=True)
    for heading in ("top-1", "95 %", "top-3", "top-10", "cluster", "ECE", "90 % set", "covers", "removed 1 / 3"):
        table.add_column(heading, justify="right")
    ordered = sorted(report["scorers"].items(), key=lambda item: -item[1]["top1"])
    for name, figures in ordered:
        low, high = figures["top1_ci"]
        table.add_row(
            f"[bold]{name}[/]" if name == report["default"] else name,
            f"{figures['top1']:.1f}",
            f"{low:.1f} to {high:.1f}",
            *(f"{figures[key]:.1f}" for key in ("top3", "top10", "cluster1", "ece", "set90_size", "set90_coverage")),
            f"{figures['removed_cluster1']:.1f} / {figures['removed_cluster3']:.1f}",
        )
    return table
