"""Pictures of an accuracy report: what accuracy costs, and who was chosen for what."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_SETTING_COLOURS = {"id": "#0969da", "ood": "#bf3989"}
_SETTING_TITLES = {"id": "own adapter in the pool", "ood": "own adapter removed"}
_DEFAULT_COLOUR = "#1f2328"
_CELL_INCHES = 0.17


def draw_accuracy(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the pictures of a report into a folder, which is made if it is not there, and say which."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [draw_cost(report, folder / "accuracy-cost.svg")]
    for setting in ("id", "ood"):
        paths.append(draw_choices(report, setting, folder / f"choices-{setting}.svg"))
    return paths


def draw_cost(report: Mapping[str, Any], path: Path) -> Path:
    """Exact match of every strategy against the ROCs that a token of its plans may switch on, a panel a setting."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    canvas = Figure(figsize=(11.0, 4.8), layout="constrained")
    FigureCanvasAgg(canvas)
    for axes, (setting, colour) in zip(canvas.subplots(1, 2, sharey=True), _SETTING_COLOURS.items(), strict=True):
        found = {name: entry[setting] for name, entry in report["strategies"].items() if entry[setting]["n"]}
        for rank, name in enumerate(sorted(found, key=lambda one: -found[one]["exact_match"])):
            is_default = name == report["default"]
            rocs, share, (low, high) = found[name]["cost"]["rocs"], found[name]["exact_match"], found[name]["ci"]
            axes.errorbar(
                rocs + 1,
                share,
                yerr=[[max(0.0, share - low)], [max(0.0, high - share)]],
                fmt="D" if is_default else "o",
                color=_DEFAULT_COLOUR if is_default else colour,
                markersize=8 if is_default else 5,
                linewidth=1,
            )
            # Neighbours often lie on one another: their names take turns on both sides.
            side = 1 if rank % 2 else -1
            axes.annotate(
                name,
                (rocs + 1, share),
                xytext=(7 * side, 3 + 3 * (rank % 3)),
                textcoords="offset points",
                ha="left" if side > 0 else "right",
                fontsize=7,
            )
        axes.set_xscale("log", base=2)
        axes.set_xlim(0.3, 1200.0)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_ylim(-0.03, 1.08)
        axes.set_title(_SETTING_TITLES[setting], fontsize=9)
        axes.set_xlabel("1 + components that a token may switch on, mean over requests")
        _bare(axes)
    canvas.axes[0].set_ylabel("exact match, 95 % interval over tasks (diamond: the default)")
    _save(canvas, path)
    return path


def draw_choices(report: Mapping[str, Any], setting: str, path: Path) -> Path:
    """Which adapter the default put first for which task, as shares of the task's lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows: Mapping[str, Mapping[str, int]] = report["choices"][setting]
    adapters = list(rows)
    adapters += sorted({name for row in rows.values() for name in row} - set(adapters))
    labels = [name or "(base alone)" for name in adapters]
    shares = np.array([[row.get(name, 0) / sum(row.values()) for name in adapters] for row in rows.values()])
    canvas = Figure(figsize=(3.2 + _CELL_INCHES * len(adapters), 2.6 + _CELL_INCHES * len(rows)), layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    axes.set_xticks(range(len(adapters)), labels, rotation=90, fontsize=6)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=6)
    axes.set_xlabel("adapter of largest weight")
    axes.set_ylabel("task of the request")
    axes.set_title(f"{report['default']}, {setting}", fontsize=9)
    canvas.colorbar(image, ax=axes, shrink=0.5, label="share of the task's requests")
    _save(canvas, path)
    return path


def _bare(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _save(canvas: Any, path: Path) -> None:
    canvas.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
