"""Reports of the engine benchmark as Markdown: the part of docs/benchmarks.md that nobody types by hand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hilora.errors import InvalidInput
from hilora_lab.bench.breakdown import PARTS
from hilora_lab.bench.figure import FIGURES

BEGIN = "<!-- generated: begin -->"
END = "<!-- generated: end -->"
_RUNS = ("base_b1", "hilora_b1", "base_b8", "hilora_b8", "base_b32", "hilora_b32")

Report = Mapping[str, Any]


def as_markdown(report: Report) -> str:
    """Machine, ratios, absolute values and the profile, as tables.

    Raises:
        InvalidInput: `malformed_report`.
    """
    try:
        return "\n\n".join(
            part for part in (_machine(report), _ratios(report), _extras(report), _breakdown(report)) if part
        )
    except (KeyError, TypeError) as error:
        raise InvalidInput(
            f"The report has no {error}.",
            code="malformed_report",
            remedy="Give what `hilora bench engine --json` wrote.",
            place="json",
        ) from error


def insert_generated(document: str, generated: str) -> str:
    """The document with the text between its two markers replaced.

    Raises:
        InvalidInput: `markers_missing`.
    """
    pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    if not pattern.search(document):
        raise InvalidInput(
            "The document has no place for generated text.",
            code="markers_missing",
            remedy=f"Put the lines {BEGIN} and {END} where it belongs.",
            place="update",
        )
    return pattern.sub(lambda _: f"{BEGIN}\n\n{generated}\n\n{END}", document)


def _machine(report: Report) -> str:
    machine, workload = report["machine"], report["workload"]
    run = "Single figures" if workload["only"] else "Quick run" if workload["is_quick"] else "Whole run"
    return (
        f"{run} at commit `{machine['commit']}`, {machine['cpu']}, {machine['num_cpus']} CPUs, "
        f"{machine['num_threads']} threads, load before the start {machine['load_before']:g}; "
        f"Python {machine['python']}, torch {machine['torch']}, transformers {machine['transformers']}, "
        f"peft {machine['peft']}; {workload['dtype']}, seed {workload['seed']}, "
        f"{report['total_seconds'] / 60:.0f} minutes."
    )


def _ratios(report: Report) -> str:
    models = list(report["models"])
    lines = [_row("figure", "goal", *models), _rule(2 + len(models))]
    for key, figure in FIGURES.items():
        cells = [_cell(report["models"][model]["ratios"].get(key), figure.is_met) for model in models]
        if any(cells):
            lines.append(_row(f"{figure.title}<br>`{key}`", figure.goal_text, *cells))
    return "\n".join(lines)


def _cell(summary: Mapping[str, float] | None, is_met: Any) -> str:
    if summary is None:
        return ""
    median = f"{summary['median']:.3f}" if summary["median"] < 10 else f"{summary['median']:.1f}"
    marked = f"**{median}**" if is_met(summary["median"]) else f"{median} (missed)"
    return f"{marked} ({summary['min']:.3f} to {summary['max']:.3f}, n = {summary['n']})"


def _extras(report: Report) -> str:
    names = sorted({name for model in report["models"].values() for name in model["extras"]})
    models = list(report["models"])
    lines = [_row("behind it (median)", *models), _rule(1 + len(models))]
    for name in names:
        values = [report["models"][model]["extras"].get(name) for model in models]
        lines.append(_row(f"`{name}`", *(_value(value) for value in values)))
    return "\n".join(lines) if names else ""


def _value(value: Mapping[str, float] | None) -> str:
    if value is None:
        return ""
    if "median" in value:
        return f"{value['median']:.4g}"
    return "<br>".join(f"{name} {number:,}" for name, number in value.items())


def _breakdown(report: Report) -> str:
    blocks: list[str] = []
    for model, by_run in report["breakdown_ms"].items():
        runs = [name for name in _RUNS if name in by_run]
        lines = [_row(f"ms of a decode step, {model}", *runs), _rule(1 + len(runs))]
        lines.extend(_row(part, *(f"{by_run[run][part]:.1f}" for run in runs)) for part in PARTS)
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(num_cells: int) -> str:
    return f"|{'---|' * num_cells}"
