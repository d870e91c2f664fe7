"""Pictures of a sensitivity report, one a dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_COLOURS = {"id": "#0969da", "ood": "#bf3989"}
_LABELS = {"id": "own adapter in the pool", "ood": "own adapter removed"}
_ROUTING = {"own_first": "own adapter first", "removed_family_first": "removed: an adapter of its family first"}
_LOGARITHMIC = frozenset({"samples", "pool_size"})
_AXES = {
    "samples": "sample texts of an adapter",
    "unequal_samples": "sample texts of the adapters",
    "gamma": "gamma, SVD basis",
    "gamma_trained_basis": "gamma, trained basis",
    "candidate_mass": "posterior mass of the candidates",
    "encoder": "encoder",
    "pool_size": "adapters in the pool",
    "self_portrait": "what profiles are made of",
}


def draw_sensitivity(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write one picture a dimension into a folder, which is made if it is not there, and say which."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for name, points in report["dimensions"].items():
        known = [point for point in points if "left_out" not in point]
        if known:
            paths.append(_draw(name, known, folder / f"sensitivity-{name.replace('_', '-')}.svg"))
    return paths


def _draw(name: str, points: Sequence[Mapping[str, Any]], path: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(6.0, 3.6), layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    values = [point["value"] for point in points]
    is_numeric = all(isinstance(value, int | float) for value in values)
    places = values if is_numeric else list(range(len(values)))
    style = "o-" if is_numeric else "o"
    if "id" in points[0]:
        for setting, colour in _COLOURS.items():
            shares = [point[setting]["exact_match"] for point in points]
            below = [max(0.0, point[setting]["exact_match"] - point[setting]["ci"][0]) for point in points]
            above = [max(0.0, point[setting]["ci"][1] - point[setting]["exact_match"]) for point in points]
            axes.errorbar(
                places, shares, yerr=[below, above], fmt=style, color=colour, capsize=2, label=_LABELS[setting]
            )
        axes.set_ylabel("exact match, 95 % over tasks")
    else:
        for (key, label), colour in zip(_ROUTING.items(), _COLOURS.values(), strict=True):
            axes.plot(places, [point[key] for point in points], style, color=colour, label=label)
        axes.set_ylabel("share of requests")
    if is_numeric and name in _LOGARITHMIC:
        axes.set_xscale("log")
        axes.set_xticks(places, [str(value) for value in values], fontsize=8)
        axes.minorticks_off()
    elif not is_numeric:
        axes.set_xticks(places, [str(value) for value in values], rotation=20, ha="right", fontsize=7)
    axes.set_ylim(-0.03, 1.05)
    axes.set_xlabel(_AXES.get(name, name))
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    canvas.savefig(path, metadata={"Date": None})
    return path
