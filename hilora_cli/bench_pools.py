"""`hilora bench sensitivity`, `robustness` and `flan`: what accuracy depends on, who can spoil it, and public pools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hilora.errors import InvalidInput
from hilora_cli.bench_accuracy import (
    JsonOption,
    LimitOption,
    OutOption,
    SeedOption,
    SplitOption,
    TestbedOption,
    accuracy_table,
    opened_bench,
    provenance,
    publish,
)
from hilora_cli.demo import SHIPPED_TESTBED

if TYPE_CHECKING:
    from rich.table import Table


def sensitivity_command(
    testbed: TestbedOption = SHIPPED_TESTBED,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="One dimension by name; may be repeated. [default: all]")
    ] = None,
    split: SplitOption = "test",
    limit_per_task: LimitOption = None,
    seed: SeedOption = 0,
    plots: Annotated[
        Path | None, typer.Option("--plots", file_okay=False, help="Draw pictures into this folder.")
    ] = None,
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Vary samples, budgets, encoder and size of the pool, one at a time, and see what the default makes of it."""
    from rich.console import Console

    from hilora_lab.accuracy.sensitivity import SensitivityBench

    console = Console(stderr=True)
    with opened_bench(testbed, split=split, limit_per_task=limit_per_task, seed=seed) as bench:
        sensitivity = SensitivityBench(bench, on_point=lambda name, value: console.print(f"{name}: {value}"))
        names = list(dict.fromkeys(only or sensitivity.dimensions))
        unknown = [name for name in names if name not in sensitivity.dimensions]
        if unknown:
            raise InvalidInput(
                f"No such dimension: {', '.join(unknown)}.",
                code="unknown_dimension",
                remedy=f"Choose from {', '.join(sensitivity.dimensions)}.",
                place="only",
            )
        points = {name: sensitivity.dimensions[name]() for name in names}
    report = {**provenance(testbed, split=split, seed=seed), "dimensions": points}
    if plots is not None:
        from hilora_lab.accuracy.sensitivity_plots import draw_sensitivity

        draw_sensitivity(report, plots)
    publish(report, as_json=as_json, out=out)
    for name, found in points.items():
        console.print(sensitivity_table(name, found))


def robustness_command(
    testbed: TestbedOption = SHIPPED_TESTBED,
    split: SplitOption = "test",
    limit_per_task: LimitOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Put adversarial adapters into the pool and see what the others' requests lose."""
    from rich.console import Console

    from hilora_lab.accuracy.robustness import run_robustness

    console = Console(stderr=True)
    with opened_bench(testbed, split=split, limit_per_task=limit_per_task, seed=seed) as bench:
        found = run_robustness(bench, on_attack=console.print)
    report = {**provenance(testbed, split=split, seed=seed), **found}
    publish(report, as_json=as_json, out=out)
    console.print(robustness_table(report))


def flan_command(
    data: Annotated[
        Path, typer.Option("--data", exists=True, dir_okay=False, help="Examples: inputs, targets, task, domain.")
    ],
    into: Annotated[Path, typer.Option("--into", file_okay=False, help="Folder for adapters, base and lines.")],
    recipe: Annotated[str, typer.Option("--recipe", help="llama2-7b or flan-t5-large.")] = "llama2-7b",
    base: Annotated[
        Path | None,
        typer.Option("--base", exists=True, file_okay=False, help="The base model's folder. [default: downloaded]"),
    ] = None,
    tasks: Annotated[str | None, typer.Option("--tasks", help="Tasks set apart by commas. [default: all]")] = None,
    adapter: Annotated[
        str | None,
        typer.Option("--adapter", help="Repositories, {task} standing for the task. [default: the recipe's]"),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="What the adapters were trained on, {inputs} standing for the input.")
    ] = None,
    strategies: Annotated[
        str | None, typer.Option("--strategies", help="Names set apart by commas. [default: all there are]")
    ] = None,
    limit_per_task: LimitOption = None,
    seed: SeedOption = 0,
    device: Annotated[str, typer.Option("--device", help="Where the engine runs: cpu or cuda.")] = "cpu",
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Fetch the public FLAN-v2 adapters through the registry's door to the hub, and compare strategies on them."""
    from dataclasses import replace

    from rich.console import Console

    from hilora.strategies import STRATEGY_NAMES
    from hilora_lab.accuracy.accuracy_report import accuracy_report, run_accuracy
    from hilora_lab.accuracy.flan import RECIPES, fetch_pool, read_rows

    if recipe not in RECIPES:
        raise typer.BadParameter(f"must be one of {', '.join(RECIPES)}", param_hint="--recipe")
    changes = {name: value for name, value in {"adapter": adapter, "prompt": prompt}.items() if value is not None}
    console = Console(stderr=True)
    pool = fetch_pool(
        replace(RECIPES[recipe], **changes),
        read_rows(data),
        into,
        base=base,
        tasks=_listed(tasks),
        on_task=lambda task, what: console.print(f"{task}: {what}"),
    )
    names = _listed(strategies) or STRATEGY_NAMES
    with opened_bench(into, split="test", limit_per_task=limit_per_task, seed=seed, device=device) as bench:
        report: dict[str, Any] = {
            **provenance(into, split="test", seed=seed),
            "recipe": recipe,
            "sources": dict(pool.sources),
            "adapters_left_out": dict(pool.left_out),
            **accuracy_report(run_accuracy(bench, names), names, seed=seed),
        }
    publish(report, as_json=as_json, out=out)
    console.print(accuracy_table(report))


def sensitivity_table(name: str, points: list[dict[str, Any]]) -> Table:
    """The points of one dimension."""
    from rich.table import Table

    table = Table(name, "ID", "OOD", "own first", "candidates (OOD)")
    for point in points:
        value = str(point["value"])
        if "left_out" in point:
            table.add_row(value, point["left_out"])
        elif "id" in point:
            known, removed = point["id"], point["ood"]
            shares = (known["exact_match"], removed["exact_match"], known["own_first"], removed["candidates"])
            table.add_row(value, *(f"{share:.3f}" for share in shares))
        else:
            table.add_row(value, "", f"family first {point['removed_family_first']:.3f}", f"{point['own_first']:.3f}")
    return table


def robustness_table(report: dict[str, Any]) -> Table:
    """What each adversary costs."""
    from rich.table import Table

    table = Table("adversary", "flagged as", title="Exact match that others lose, worst of the victims")
    for heading in ("ID", "OOD", "ID without policy", "OOD without policy", "met"):
        table.add_column(heading, justify="right")
    for name, found in report["adversaries"].items():
        lost = [found[setting][key] for key in ("lost", "lost_without_policy") for setting in ("id", "ood")]
        table.add_row(name, ", ".join(found["flags"]), *(f"{one:.3f}" for one in lost), str(found["is_met"]))
    return table


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(one.strip() for one in (text or "").split(",") if one.strip())
