"""Pictures of an accuracy report: what accuracy costs, and who was chosen for what."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_SETTING_COLOURS = {"id": "#0969da", "ood": "#bf3989"}
_DEFAULT_EDGE = "#1f2328"
_CELL_INCHES = 0.17


def draw_accuracy(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the pictures of a report into a folder, which is made if it is not there, and say which."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [draw_cost(report, folder / "accuracy-cost.svg")]
    for setting in ("id", "ood"):
        paths.append(draw_choices(report, setting, folder / f"choices-{setting}.svg"))
    return paths


def draw_cost(report: Mapping[str, Any], path: Path) -> Path:
    """Exact match of every strategy against the ROCs that a token of its plans may switch on."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(8.5, 5.0), layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    for setting, colour in _SETTING_COLOURS.items():
        for name, entry in report["strategies"].items():
            found = entry[setting]
            if found["exact_match"] is None:
                continue
            rocs, share, (low, high) = found["cost"]["rocs"], found["exact_match"], found["ci"]
            is_default = name == report["default"]
            axes.errorbar(
                rocs + 1,
                share,
                yerr=[[max(0.0, share - low)], [max(0.0, high - share)]],
                fmt="D" if is_default else "o",
                color=colour,
                markeredgecolor=_DEFAULT_EDGE if is_default else colour,
                markersize=8 if is_default else 5,
                linewidth=1,
            )
            axes.annotate(name, (rocs + 1, share), xytext=(5, 4), textcoords="offset points", fontsize=7, color=colour)
        axes.plot(
            [], [], "o", color=colour, label="own adapter in the pool" if setting == "id" else "own adapter removed"
        )
    axes.set_xscale("log", base=2)
    axes.set_ylim(-0.03, 1.05)
    axes.set_xlabel("1 + components that a token may switch on, mean over requests (diamond: the default)")
    axes.set_ylabel("exact match, 95 % interval over tasks")
    axes.legend(fontsize=8, frameon=False, loc="lower left")
    _bare(axes)
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
