"""`hilora bench`: how fast engine, router and registry are on this machine, and the pages that say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hilora.errors import InvalidInput
from hilora_cli.bench_accuracy import accuracy_command, accuracy_report_command
from hilora_cli.bench_cost import cost_command
from hilora_cli.bench_pools import flan_command, robustness_command, sensitivity_command
from hilora_cli.bench_routing import routing_command
from hilora_cli.demo import SHIPPED_TESTBED

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from hilora_lab.bench.router_peer import PeerInstallation

app = typer.Typer(
    help="Measure the engine against its base and against others, the router's latency, and the registry at scale.",
    no_args_is_help=True,
)

app.command("accuracy")(accuracy_command)
app.command("accuracy-report")(accuracy_report_command)
app.command("cost")(cost_command)
app.command("sensitivity")(sensitivity_command)
app.command("robustness")(robustness_command)
app.command("flan")(flan_command)

PlotOption = Annotated[
    Path | None, typer.Option("--plot", dir_okay=False, help="Draw the ratios to this file (.svg, .png or .pdf).")
]


app.command("routing")(routing_command)


@app.callback()
def bench() -> None:
    """Measure the engine against its base and against others, the router's latency, and the registry at scale."""


@app.command("engine")
def engine_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON to standard output.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="The figures of batches 8 and 32 only, in a few minutes.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="One figure by key; may be repeated. [default: all]")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="qwen2.5-0.5b, llama-1024x12, or all.")] = "all",
    shape: Annotated[str | None, typer.Option("--shape", hidden=True)] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Turns of each comparison.")] = 5,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of weights, adapters, plans and prompts.")] = 0,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads of torch. [default: torch's own choice]")
    ] = None,
    profile: Annotated[bool, typer.Option(help="Say where the time of a decode step goes.")] = True,
    out: Annotated[
        Path | None, typer.Option("--out", dir_okay=False, help="Write the report to this file as well.")
    ] = None,
    plot: PlotOption = None,
) -> None:
    """Compare HiLoRA with its base and its peers on this machine's CPU; every ratio is taken within one run."""
    import warnings

    import torch
    from rich.console import Console
    from transformers.utils import logging as transformers_logging

    from hilora_cli.progress_bars import progress_bars
    from hilora_lab.bench.engine_bench import BENCH_MODELS, BenchOrder, run_engine_bench
    from hilora_lab.bench.model_shape import find_shape

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    names = BENCH_MODELS if shape is None and model == "all" else (find_shape(shape or model).name,)
    order = BenchOrder(
        models=names, is_quick=quick, only=tuple(only or ()), seed=seed, num_rounds=rounds, has_breakdown=profile
    )
    threads_before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    console = Console(stderr=True)
    try:
        with warnings.catch_warnings(), progress_bars(console, width=48) as on_progress:
            # The peers' libraries warn about each other.
            warnings.simplefilter("ignore", FutureWarning)
            report = run_engine_bench(order, on_progress=on_progress)
    finally:
        torch.set_num_threads(threads_before)
    content = json.dumps(report, indent=1)
    if out is not None:
        out.write_text(f"{content}\n")
    _draw(report, plot)
    if as_json:
        typer.echo(content)
    console.print(ratio_table(report))


@app.command("registry")
def registry_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON to standard output.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A pool of 500 adapters, in some minutes.")] = False,
    adapters: Annotated[
        int | None, typer.Option("--adapters", min=20, help="Adapters that are ingested. [default: 10000]")
    ] = None,
    testbed: Annotated[
        Path, typer.Option("--testbed", exists=True, file_okay=False, help="Whose base and shapes are taken.")
    ] = SHIPPED_TESTBED,
    searched: Annotated[tuple[int, int] | None, typer.Option("--searched", hidden=True)] = None,
    quiet_seconds: Annotated[float | None, typer.Option("--quiet-seconds", hidden=True)] = None,
    out: Annotated[
        Path | None, typer.Option("--out", dir_okay=False, help="Write the report to this file as well.")
    ] = None,
) -> None:
    """Fill a registry with synthetic adapters, follow it, search it, and update it while requests are routed."""
    from dataclasses import replace

    from rich.console import Console

    from hilora_cli.progress_bars import progress_bars
    from hilora_lab.bench.registry_bench import RegistryBenchOrder, run_registry_bench

    order = RegistryBenchOrder(testbed=testbed.resolve(), num_adapters=adapters or (500 if quick else 10_000))
    if searched is not None:
        order = replace(order, searched=searched)
    if quiet_seconds is not None:
        order = replace(order, quiet_seconds=quiet_seconds)
    console = Console(stderr=True)
    with progress_bars(console) as on_progress:
        report = run_registry_bench(order, on_progress=on_progress)
    content = json.dumps(report, indent=1)
    if out is not None:
        out.write_text(f"{content}\n")
    if as_json:
        typer.echo(content)
    console.print(registry_table(report))


@app.command("router")
def router_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON to standard output.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="The same figures from fewer requests, in minutes.")] = False,
    adapters: Annotated[
        int, typer.Option("--adapters", min=20, max=1000, help="Adapters of the router's pool.")
    ] = 1000,
    memory_requests: Annotated[
        int | None,
        typer.Option("--memory-requests", min=40, help="Requests while its memory is watched. [default: 100000]"),
    ] = None,
    peer: Annotated[
        str,
        typer.Option("--peer", help="`install` makes an environment with semantic-router and LiteLLM; `none` none."),
    ] = "none",
    peer_python: Annotated[
        Path | None,
        typer.Option("--peer-python", exists=True, dir_okay=False, help="An interpreter that has both, and torch."),
    ] = None,
    seconds: Annotated[tuple[float, float, float] | None, typer.Option("--seconds", hidden=True)] = None,
    scored: Annotated[int | None, typer.Option("--scored", hidden=True)] = None,
    out: Annotated[
        Path | None, typer.Option("--out", dir_okay=False, help="Write the report to this file as well.")
    ] = None,
) -> None:
    """Measure what the router adds to an answer, beside another proxy on the same backend."""
    from dataclasses import replace

    from rich.console import Console

    from hilora_cli.progress_bars import progress_bars
    from hilora_lab.bench.router_bench import LEVELS, RouterBenchOrder, run_router_bench

    console = Console(stderr=True)
    installation = _peer_installation(peer, peer_python, console)
    make = RouterBenchOrder.quick if quick else RouterBenchOrder
    order = make(num_adapters=adapters, peer=installation)
    if memory_requests is not None:
        order = replace(order, memory_requests=memory_requests)
    if seconds is not None:
        order = replace(order, seconds=dict(zip(LEVELS, seconds, strict=True)), cached_seconds=min(seconds))
    if scored is not None:
        order = replace(order, num_scored=scored)
    with progress_bars(console) as on_progress:
        report = run_router_bench(order, on_progress=on_progress)
    content = json.dumps(report, indent=1)
    if out is not None:
        out.write_text(f"{content}\n")
    if as_json:
        typer.echo(content)
    console.print(router_table(report))


@app.command("report")
def report_command(
    source: Annotated[
        Path, typer.Option("--json", exists=True, dir_okay=False, help="What `hilora bench engine --out` wrote.")
    ],
    update: Annotated[
        Path | None,
        typer.Option("--update", exists=True, dir_okay=False, help="Put the tables between this page's markers."),
    ] = None,
    plot: PlotOption = None,
) -> None:
    """Turn a saved report into tables, to standard output or into a page."""
    from hilora_lab.bench.document import as_markdown, insert_generated

    report = _read(source)
    text = as_markdown(report)
    if update is None:
        typer.echo(text)
    else:
        update.write_text(insert_generated(update.read_text(encoding="utf-8"), text), encoding="utf-8")
    _draw(report, plot)


def ratio_table(report: dict[str, Any]) -> Table:
    """The ratios of a report beside their goals."""
    from rich.table import Table

    table = Table("figure", "model", "goal", title="HiLoRA's engine")
    for heading in ("median", "least", "most", "n"):
        table.add_column(heading, justify="right")
    for key, summary in report["ratios"].items():
        figure = report["figures"][key]
        colour = "green" if figure["is_met"] else "red"
        values = (f"[{colour}]{summary['median']:.3f}[/]", f"{summary['min']:.3f}", f"{summary['max']:.3f}")
        table.add_row(figure["title"], figure["model"], figure["goal"], *values, str(summary["n"]))
    return table


def registry_table(report: dict[str, Any]) -> Table:
    """The figures of a registry benchmark beside their goals."""
    from rich.table import Table

    table = Table("figure", title=f"HiLoRA's registry, {report['num_adapters']} adapters")
    table.add_column("value", justify="right")
    table.add_column("goal", justify="right")
    keys = (
        *("ingest_per_second", "artifact_bytes_per_adapter", "router_follow_seconds", "catalog_bytes_per_adapter"),
        *("search_ms_10k", "search_ms_100k", "update_p99_ratio"),
    )
    for key in keys:
        colour = {True: "green", False: "red"}.get(report["is_met"].get(key), "default")
        table.add_row(key, f"[{colour}]{report[key]:g}[/]", report["goals"].get(key, ""))
    return table


def router_table(report: dict[str, Any]) -> Table:
    """The figures of a router benchmark beside their goals."""
    from rich.table import Table

    from hilora_lab.bench.router_peer import PROXY_PEER

    table = Table("figure", title=f"HiLoRA's router, {report['num_adapters']} adapters")
    for heading in ("1 stream", "32 streams", "256 streams", "goal"):
        table.add_column(heading, justify="right")
    peer = report["peer_added_latency_ms_p50"]
    for key in ("added_latency_ms_p50", "added_latency_ms_p99", "peer_added_latency_ms_p50"):
        title = key if key in report["goals"] else f"{key} ({peer['peer'] or peer['reason']})"
        cells = (
            "" if value is None else f"{value:g}" for value in (report[key][level] for level in ("1", "32", "256"))
        )
        table.add_row(title, *cells, report["goals"].get(key, ""))
    proxies = [added["p50"] if added else None for added in report["extras"]["added"][PROXY_PEER].values()]
    if any(proxies):
        table.add_row(f"the same ({PROXY_PEER})", *("" if value is None else f"{value:g}" for value in proxies))
    for key in ("score_10k_ms", "requests_per_second_cached", "memory_bytes_per_request"):
        table.add_row(key, f"{report[key]:g}", "", "", report["goals"][key])
    missed = ", ".join(key for key, is_met in report["is_met"].items() if is_met is False)
    table.caption = f"missed: {missed}" if missed else "all goals that were measured are met"
    return table


def _peer_installation(peer: str, peer_python: Path | None, console: Console) -> PeerInstallation | None:
    """The peer to compare with, where one was asked for."""
    from hilora_lab.bench.router_peer import find_peer, install_peer

    if peer_python is not None:
        return find_peer(peer_python)
    if peer == "install":
        folder = Path.home() / ".cache" / "hilora-serve" / "peer"
        console.print(f"The peers live in {folder}.")
        return install_peer(folder)
    if peer != "none":
        raise InvalidInput(f"--peer is {peer!r}.", code="unknown_peer", remedy="Use `install` or `none`.", place="peer")
    console.print("[yellow]No peer is measured beside the router: give --peer install or --peer-python.[/]")
    return None


def _read(source: Path) -> dict[str, Any]:
    try:
        return json.loads(source.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidInput(
            f"{source} is not JSON.",
            code="malformed_report",
            remedy="Give what `hilora bench engine --out` wrote.",
            place="json",
        ) from error


def _draw(report: dict[str, Any], plot: Path | None) -> None:
    if plot is not None:
        from hilora_lab.bench.plot import draw_report

        draw_report(report, plot)
