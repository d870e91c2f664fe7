"""The ratios of a report as a picture: median, spread and goal of each figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hilora_lab.bench.figure import FIGURES

_COLOURS = ("#0969da", "#bf3989", "#1a7f37")
_GOAL_COLOUR = "#57606a"
_ROW_INCHES = 0.42
_BAR_SHARE = 0.76
"""Of a row's height, all bars together."""


def draw_report(report: Mapping[str, Any], path: Path) -> None:
    """Write the picture; the file's ending says in which format.

    Bars are shares of each figure's goal, so that ratios of any size share an axis: at 1 the goal is met. For an upper
    limit the share is turned around.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    models = list(report["models"])
    keys = [key for key in FIGURES if any(key in report["models"][model]["ratios"] for model in models)]
    canvas = Canvas(figsize=(9.5, 1.2 + _ROW_INCHES * max(1, len(keys))), layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    height = _BAR_SHARE / max(1, len(models))
    for model_idx, model in enumerate(models):
        for row, key in enumerate(keys):
            summary = report["models"][model]["ratios"].get(key)
            if summary is None:
                continue
            middle, least, most = (_share_of_goal(key, summary[name]) for name in ("median", "min", "max"))
            place = row + (model_idx - (len(models) - 1) / 2) * height
            axes.barh(place, middle, height=0.9 * height, color=_COLOURS[model_idx % len(_COLOURS)])
            axes.plot(sorted((least, most)), [place, place], color="black", linewidth=1)
            axes.text(max(most, least, middle) + 0.02, place, f"{summary['median']:.2f}", va="center", fontsize=8)
    axes.axvline(1.0, color=_GOAL_COLOUR, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(keys)), [f"{FIGURES[key].title}  ({FIGURES[key].goal_text})" for key in keys], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("share of the goal (dashed: met); bar = median, line = least to most, number = the ratio itself")
    axes.xaxis.label.set_fontsize(8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for model_idx, model in enumerate(models):
        axes.barh(0, 0, color=_COLOURS[model_idx % len(_COLOURS)], label=model)
    axes.legend(fontsize=8, loc="lower right", frameon=False)
    canvas.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _share_of_goal(key: str, value: float) -> float:
    figure = FIGURES[key]
    return figure.goal / value if figure.is_upper_limit else value / figure.goal
