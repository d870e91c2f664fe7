"""`hilora bench accuracy` and its kin: how often the right answer comes out, by strategy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hilora_cli.demo import SHIPPED_TESTBED

if TYPE_CHECKING:
    from rich.table import Table

    from hilora_lab.accuracy.planner import Learned

TestbedOption = Annotated[
    Path, typer.Option("--testbed", exists=True, file_okay=False, help="A folder in the testbed format.")
]
SplitOption = Annotated[str, typer.Option("--split", help="Lines to ask: test or dev.")]
LimitOption = Annotated[
    int | None, typer.Option("--limit-per-task", min=1, help="At most this many lines of each task.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of draws by chance and of the intervals.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the report as JSON to standard output.")]
OutOption = Annotated[Path | None, typer.Option("--out", dir_okay=False, help="Write the report to this file as well.")]


def accuracy_command(
    testbed: TestbedOption = SHIPPED_TESTBED,
    strategies: Annotated[
        str | None,
        typer.Option("--strategies", help="Names set apart by commas, also NAME:FIELD=VALUE. [default: all there are]"),
    ] = None,
    split: SplitOption = "test",
    limit_per_task: LimitOption = None,
    seed: SeedOption = 0,
    device: Annotated[str, typer.Option("--device", help="Where the engine runs: cpu or cuda.")] = "cpu",
    gates: Annotated[
        Path | None, typer.Option("--gates", exists=True, file_okay=False, help="Folder of `hilora train gate`.")
    ] = None,
    gate: Annotated[
        list[str] | None, typer.Option("--gate", help="strategy=gate_id, for ramole and phatgoose; may be repeated.")
    ] = None,
    lorahub_weights: Annotated[
        Path | None,
        typer.Option("--lorahub-weights", exists=True, help="What lorahub learned; of --each-task the folder."),
    ] = None,
    holds_back: Annotated[
        bool, typer.Option("--hold-back", help="Choose no adapter that is flagged: the product's default policy.")
    ] = False,
    plots: Annotated[
        Path | None, typer.Option("--plots", file_okay=False, help="Draw pictures into this folder.")
    ] = None,
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Ask every strategy every question of a testbed: own adapter there, removed, never made."""
    from rich.console import Console

    from hilora.strategies import STRATEGY_NAMES
    from hilora_lab.accuracy.accuracy_bench import BASE, ORACLE
    from hilora_lab.accuracy.accuracy_report import accuracy_report, run_accuracy
    from hilora_lab.accuracy.variants import parse_variant, split_variants

    names = split_variants(strategies) if strategies else STRATEGY_NAMES
    for name in names:
        if name not in {BASE, ORACLE}:
            parse_variant(name)
    learned = _learned(gates, gate or [], lorahub_weights)
    with opened_bench(
        testbed,
        split=split,
        limit_per_task=limit_per_task,
        seed=seed,
        device=device,
        learned=learned,
        holds_back=holds_back,
    ) as bench:
        run = run_accuracy(bench, names)
        held_back = {name: list(flags) for name, flags in bench.held_back.items()}
    report = {
        **provenance(testbed, split=split, seed=seed),
        "held_back": held_back,
        **accuracy_report(run, names, seed=seed),
    }
    if plots is not None:
        from hilora_lab.accuracy.accuracy_plots import draw_accuracy

        draw_accuracy(report, plots)
    publish(report, as_json=as_json, out=out)
    Console(stderr=True).print(accuracy_table(report))


def accuracy_report_command(
    source: Annotated[
        Path, typer.Option("--json", exists=True, dir_okay=False, help="What `hilora bench accuracy --out` wrote.")
    ],
    plots: Annotated[
        Path | None, typer.Option("--plots", file_okay=False, help="Draw pictures into this folder.")
    ] = None,
) -> None:
    """Turn a saved accuracy report into Markdown tables, and into pictures."""
    from hilora.errors import InvalidInput
    from hilora_lab.accuracy.accuracy_document import accuracy_markdown

    try:
        report = json.loads(source.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidInput(f"{source} is not JSON.", code="malformed_report", place="json") from error
    typer.echo(accuracy_markdown(report))
    if plots is not None:
        from hilora_lab.accuracy.accuracy_plots import draw_accuracy

        draw_accuracy(report, plots)


def _learned(gates: Path | None, named: list[str], weights: Path | None) -> Learned:
    from dataclasses import replace

    from hilora_lab.accuracy.planner import Learned
    from hilora_lab.training.lorahub_tasks import read_task_weights
    from services.router.infra.weights_file import read_weights

    pairs = [one.partition("=") for one in named]
    if any(not strategy or not gate_id for strategy, _, gate_id in pairs) or (pairs and gates is None):
        raise typer.BadParameter("must be strategy=gate_id, with --gates for its folder", param_hint="--gate")
    learned = Learned(gate_ids={strategy: gate_id for strategy, _, gate_id in pairs}, gates_folder=gates)
    if weights is None:
        return learned
    if not weights.is_dir():
        return replace(learned, weights=read_weights(weights))
    with_own, without_own = read_task_weights(weights)
    return replace(learned, task_weights=with_own, task_weights_without_own=without_own)


def opened_bench(
    testbed: Path,
    *,
    split: str,
    limit_per_task: int | None,
    seed: int,
    device: str = "cpu",
    learned: Learned | None = None,
    holds_back: bool = False,
) -> Any:
    """A loaded testbed as a context, its progress on standard error.

    Raises:
        BadParameter: no such split.
    """
    from contextlib import contextmanager

    if split not in {"test", "dev"}:
        raise typer.BadParameter("must be test or dev", param_hint="--split")

    @contextmanager
    def opened() -> Any:
        from rich.console import Console
        from transformers.utils import logging as transformers_logging

        from hilora_cli.progress_bars import progress_bars
        from hilora_lab.accuracy.accuracy_bench import AccuracyBench
        from hilora_lab.accuracy.planner import NOTHING_LEARNED
        from hilora_lab.evaluation.embedding import MiniLMEncoder
        from hilora_lab.testbed.folder import read_testbed

        transformers_logging.disable_progress_bar()
        with progress_bars(Console(stderr=True), width=36, hides_done=True) as on_progress:
            bench = AccuracyBench(
                read_testbed(testbed),
                MiniLMEncoder(),
                split="test" if split == "test" else "dev",
                limit_per_task=limit_per_task,
                seed=seed,
                device=device,
                learned=learned or NOTHING_LEARNED,
                holds_back=holds_back,
                on_progress=on_progress,
            )
            try:
                yield bench
            finally:
                bench.close()

    return opened()


def provenance(testbed: Path, *, split: str, seed: int) -> dict[str, Any]:
    """What every report says about where its numbers come from."""
    from dataclasses import asdict

    from hilora_lab.bench.machine import describe_machine

    return {"testbed": testbed.resolve().name, "split": split, "seed": seed, "machine": asdict(describe_machine())}


def publish(report: dict[str, Any], *, as_json: bool, out: Path | None) -> None:
    """Write a report where it was asked for."""
    content = json.dumps(report, indent=1)
    if out is not None:
        out.write_text(f"{content}\n", encoding="utf-8")
    if as_json:
        typer.echo(content)


def accuracy_table(report: dict[str, Any]) -> Table:
    """Strategies beside one another, the default first, floor and ceiling last."""
    from rich.table import Table

    has = [
        setting
        for setting in ("id", "ood", "unseen", "new_wording", "two_skill")
        if report["references"]["base"][setting]["exact_match"] is not None
    ]
    title = f"Exact match, {report['split']} split of {report['testbed']}, 95 % intervals over tasks"
    table = Table("strategy", title=title)
    for heading in (*has, "mean of id and ood", "candidates", "added ms"):
        table.add_column(heading, justify="right")
    rows = [
        (f"{name} (default)" if name == report["default"] else name, entry)
        for name, entry in report["strategies"].items()
    ]
    rows += [(f"{name} (reference)", entry) for name, entry in report["references"].items()]
    for name, entry in rows:
        cells = [_share(entry[setting]) for setting in (*has, "mean_id_ood")]
        cost = entry["id"]["cost"]
        table.add_row(name, *cells, f"{cost['candidates']:.1f}", f"{cost['added_ms']:.1f}")
    if report["left_out"]:
        table.caption = "; ".join(f"{name}: {reason}" for name, reason in report["left_out"].items())
    return table


def _share(found: dict[str, Any]) -> str:
    low, high = found["ci"]
    return f"{found['exact_match']:.3f} [{low:.2f} {high:.2f}]"
