"""`hilora bench cost`: what the default adds to a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hilora_cli.bench_accuracy import JsonOption, OutOption, SeedOption, TestbedOption, provenance, publish
from hilora_cli.demo import SHIPPED_TESTBED

if TYPE_CHECKING:
    from rich.table import Table


def cost_command(
    testbed: TestbedOption = SHIPPED_TESTBED,
    adapters: Annotated[
        int, typer.Option("--adapters", min=2, max=1000, help="Of the pool in which decisions are timed.")
    ] = 1000,
    texts: Annotated[int, typer.Option("--texts", min=1, help="Decisions that count.")] = 300,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Turns of each comparison.")] = 31,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Time the default's decision beyond the encoder, and a token under its plans beside one pinned adapter's."""
    from rich.console import Console
    from transformers.utils import logging as transformers_logging

    from hilora_cli.progress_bars import progress_bars
    from hilora_lab.accuracy.default_cost import CostOrder, measure_cost
    from hilora_lab.evaluation.embedding import MiniLMEncoder
    from hilora_lab.testbed.folder import read_testbed

    transformers_logging.disable_progress_bar()
    console = Console(stderr=True)
    about = provenance(testbed, split="test", seed=seed)
    order = CostOrder(num_adapters=adapters, num_texts=texts, num_rounds=rounds, seed=seed)
    with progress_bars(console, width=36, hides_done=True) as on_progress:
        found = measure_cost(read_testbed(testbed), MiniLMEncoder(), order, on_progress)
    report = {**about, **found}
    publish(report, as_json=as_json, out=out)
    console.print(cost_table(report))


def cost_table(report: dict[str, Any]) -> Table:
    """The figures beside their goals."""
    from rich.table import Table

    routing, goals = report["routing"], report["goals"]
    table = Table("figure", title=f"What the default costs, {routing['num_adapters']} adapters where it decides")
    for heading in ("median", "worst", "goal"):
        table.add_column(heading, justify="right")
    for key in ("decide_ms", "decide_cpu_ms", "gaussian_ms", "gaussian_cpu_ms"):
        goal = f"<= {goals['decide_ms']:g}" if key == "decide_ms" else ""
        table.add_row(key, f"{routing[key]['p50']:.3f}", f"p99 {routing[key]['p99']:.3f}", goal)
    for batch, settings in report["per_token"].items():
        for setting, found in settings.items():
            for kind in ("decode", "whole", "cpu"):
                ratio = found[kind]
                goal = f"<= {goals['per_token']:g}" if kind == "decode" else ""
                table.add_row(f"{kind} {batch} {setting}", f"{ratio['median']:.3f}", f"{ratio['max']:.3f}", goal)
    missed = ", ".join(key for key, is_met in report["is_met"].items() if not is_met)
    table.caption = f"missed: {missed}" if missed else "both goals are met"
    return table
