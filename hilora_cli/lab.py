"""`hilora lab`: train the project's own testbed and measure routing on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from hilora_lab.testbed.report import TaskScore

app = typer.Typer(help="Train and measure small pools of adapters.", no_args_is_help=True)


@app.callback()
def lab() -> None:
    """Train and measure small pools of adapters."""


@app.command("build-testbed")
def build_testbed_command(
    out: Annotated[Path, typer.Option("--out", help="Folder to write; an interrupted build goes on where it stopped.")],
    size: Annotated[str, typer.Option(help="small: the shipped kind; large: 60 adapters of every kind.")] = "small",
    seed: Annotated[int, typer.Option(help="Seed of tasks, base and adapters.")] = 0,
    families: Annotated[
        list[str] | None, typer.Option("--families", help="A taught family; may be repeated. [default: all]")
    ] = None,
    base_steps: Annotated[int | None, typer.Option(min=1, help="Training steps of the base.")] = None,
    adapter_steps: Annotated[int | None, typer.Option(min=1, help="Training steps of each adapter.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads to train with.")] = 2,
    warm_start: Annotated[
        Path | None,
        typer.Option("--warm-start", exists=True, file_okay=False, help="large: begin with this testbed's base."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder if it exists.")] = False,
) -> None:
    """Train a base and its LoRAs on this machine's CPU, and report exact match."""
    from dataclasses import replace

    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
    from transformers.utils import logging as transformers_logging

    from hilora_lab.testbed.build import BuildRecipe, build_testbed
    from hilora_lab.testbed.large_build import LargeRecipe, build_large_testbed

    if size not in {"small", "large"}:
        raise typer.BadParameter("must be small or large", param_hint="--size")
    if size == "large" and families:
        raise typer.BadParameter("the large testbed has all families", param_hint="--families")
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(threads)
    if warm_start is not None and size != "large":
        raise typer.BadParameter("goes with --size large", param_hint="--warm-start")
    large = LargeRecipe(seed=seed)
    if warm_start is not None:
        gentle = replace(
            large.base, num_steps=800, matrix_lr=large.base.matrix_lr / 2, other_lr=large.base.other_lr / 2
        )
        large = replace(large, base=gentle, warm_start=True)
    recipe = large if size == "large" else BuildRecipe(seed=seed, families=tuple(families or ()))
    if base_steps is not None:
        recipe = replace(recipe, base=replace(recipe.base, num_steps=base_steps))
    if adapter_steps is not None:
        recipe = replace(recipe, adapter=replace(recipe.adapter, num_steps=adapter_steps))

    console = Console()
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=console) as progress:
        bars: dict[str, TaskID] = {}

        def on_progress(stage: str, done: int, total: int, detail: str) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=total, detail="")
            progress.update(bars[stage], completed=done, total=total, detail=detail)

        if isinstance(recipe, LargeRecipe):
            warm_base = None if warm_start is None else warm_start / "base"
            scores = build_large_testbed(
                out, recipe, warm_base=warm_base, replace_existing=force, on_progress=on_progress
            )
        else:
            scores = build_testbed(out, recipe, replace_existing=force, on_progress=on_progress)
    console.print(score_table(scores))
    console.print(f"Written to {out}")


@app.command("reword")
def reword_command(
    testbed: Annotated[Path, typer.Option("--testbed", exists=True, file_okay=False, help="A testbed folder.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; base and adapters are linked.")],
    seed: Annotated[int, typer.Option(help="Seed of the new prompts.")] = 0,
) -> None:
    """Ask for a testbed's tasks in words that no sample text uses as well."""
    from hilora_lab.testbed.folder import read_testbed
    from hilora_lab.testbed.rewording import write_reworded

    typer.echo(f"Written to {write_reworded(read_testbed(testbed), out, seed=seed)}")


@app.command("ablate")
def ablate_command(
    testbed: Annotated[Path, typer.Option("--testbed", help="A testbed folder.")],
    split: Annotated[str, typer.Option(help="Lines to ask: dev or test.")] = "dev",
    limit_per_task: Annotated[int | None, typer.Option(min=1, help="At most that many lines of each task.")] = None,
    configurations: Annotated[
        list[str] | None, typer.Option("--configuration", help="One by name; may be repeated. [default: all]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compare routing configurations on a testbed, without a running system."""
    from dataclasses import asdict
    from typing import cast

    from rich.console import Console
    from rich.table import Table
    from transformers.utils import logging as transformers_logging

    from hilora_lab.evaluation.ablation import AblationRow, run_ablation
    from hilora_lab.evaluation.embedding import MiniLMEncoder
    from hilora_lab.evaluation.offline import OfflineBench
    from hilora_lab.testbed.folder import Split, read_testbed

    transformers_logging.disable_progress_bar()
    if split not in {"dev", "test"}:
        raise typer.BadParameter("must be dev or test", param_hint="--split")
    progress_console = Console(stderr=True)
    with progress_console.status("Loading and embedding the testbed") as status:
        bench = OfflineBench(
            read_testbed(testbed), MiniLMEncoder(), split=cast("Split", split), limit_per_task=limit_per_task
        )

        def on_row(row: AblationRow) -> None:
            status.update(f"Done: {row.name}")

        rows = run_ablation(bench, configurations, on_row)
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=1))
        return
    table = Table("configuration", "ID", "OOD", "OOD family first", "ROCs (ID)", title=f"Exact match, {split} split")
    for row in rows:
        known, removed = row.scores["id"], row.scores["ood"]
        cells = (f"{known.exact_match:.3f}", f"{removed.exact_match:.3f}", f"{removed.family_first:.3f}")
        table.add_row(row.name, *cells, f"{known.mean_rocs:.1f}")
    Console().print(table)


@app.command("topics")
def topics_command(
    testbed: Annotated[Path, typer.Option("--testbed", help="A testbed folder.")],
    shares: Annotated[
        list[float] | None, typer.Option("--share", min=0, max=1, help="HILORA_ROUTER_REPLAN_SHARE; may be repeated.")
    ] = None,
    odds: Annotated[float, typer.Option(min=1, help="HILORA_ROUTER_REPLAN_ODDS.")] = 9.0,
    split: Annotated[str, typer.Option(help="Lines to ask: dev or test.")] = "dev",
    limit_per_task: Annotated[int | None, typer.Option(min=1, help="At most that many lines of each task.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """How often a session's plan would end, by what the next turn says."""
    from dataclasses import asdict
    from typing import cast

    from rich.console import Console
    from rich.table import Table
    from transformers.utils import logging as transformers_logging

    from hilora.topic_watch import TopicRules
    from hilora_lab.evaluation.embedding import MiniLMEncoder
    from hilora_lab.evaluation.topic_rates import TopicBench
    from hilora_lab.testbed.folder import Split, read_testbed

    transformers_logging.disable_progress_bar()
    if split not in {"dev", "test"}:
        raise typer.BadParameter("must be dev or test", param_hint="--split")
    with Console(stderr=True).status("Loading and embedding the testbed"):
        bench = TopicBench(
            read_testbed(testbed), MiniLMEncoder(), split=cast("Split", split), limit_per_task=limit_per_task
        )
        found = {share: bench.rates(TopicRules(odds=odds, share=share)) for share in shares or [TopicRules().share]}
    if as_json:
        typer.echo(json.dumps({str(share): [asdict(rate) for rate in rates] for share, rates in found.items()}))
        return
    for share, rates in found.items():
        title = f"Plans that end, odds {odds:g}, share {share:g}, {split} split"
        table = Table("the next turn", "plan of the same task", "of another", "nearest is its own", title=title)
        for rate in rates:
            cells = (rate.same_task, rate.other_task, rate.nearest_is_own)
            table.add_row(rate.kind, *("" if cell is None else f"{cell:.3f}" for cell in cells))
        Console().print(table)


@app.command("profiles")
def profiles_command(
    testbed: Annotated[Path, typer.Option("--testbed", help="A testbed folder.")],
    split: Annotated[str, typer.Option(help="Lines to route: dev or test.")] = "dev",
    limit_per_task: Annotated[int | None, typer.Option(min=1, help="At most that many lines of each task.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compare what profiles are made of: sample texts, self-portraits, cards. Takes minutes of CPU."""
    from dataclasses import asdict
    from typing import cast

    from rich.console import Console
    from rich.table import Table
    from transformers.utils import logging as transformers_logging

    from hilora_lab.evaluation.embedding import MiniLMEncoder
    from hilora_lab.evaluation.profile_sources import ProfileBench, Share
    from hilora_lab.testbed.folder import Split, read_testbed

    transformers_logging.disable_progress_bar()
    if split not in {"dev", "test"}:
        raise typer.BadParameter("must be dev or test", param_hint="--split")
    with Console(stderr=True).status("Loading and embedding the testbed") as status:
        bench = ProfileBench(
            read_testbed(testbed), MiniLMEncoder(), split=cast("Split", split), limit_per_task=limit_per_task
        )
        sources = bench.texts_by_source(lambda stage: status.update(f"Self-portraits, {stage}"))
        scores = []
        for source, texts in sources.items():
            status.update(f"Routing by {source}")
            scores += bench.score(source, texts)
    if as_json:
        typer.echo(json.dumps([asdict(score) for score in scores], indent=1))
        return

    def cell(share: Share) -> str:
        return f"{share.value:.3f} ({share.low:.2f} to {share.high:.2f})"

    title = f"Routing by source of the profiles, {split} split, 95 % bootstrap over tasks"
    table = Table("profiles", "setting", "own first", "own among three", "family first", title=title)
    for score in scores:
        shares = (score.own_first, score.own_among_three, score.family_first)
        table.add_row(score.source, score.setting, *map(cell, shares))
    Console().print(table)


def score_table(scores: list[TaskScore]) -> Table:
    """Exact match per task, the means of the tasks with an adapter last."""
    from rich.table import Table

    from hilora_lab.testbed.report import overall

    table = Table("task", "base", "own adapter", "siblings", title="Exact match, test split")
    for score in scores:
        cells = (score.base, score.own_adapter, score.siblings)
        table.add_row(score.task, *("" if cell is None else f"{cell:.3f}" for cell in cells))
    means = overall(scores)
    table.add_section()
    columns = ("base", "own_adapter", "siblings")
    table.add_row("all with adapter", *(f"{means[name]:.3f}" if name in means else "" for name in columns))
    return table
