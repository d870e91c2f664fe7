"""An accuracy report as Markdown: the tables of docs/benchmarks.md that nobody types by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hilora.errors import InvalidInput
from hilora_lab.accuracy.asked import SETTINGS

_HEADINGS = {
    "id": "ID",
    "ood": "OOD",
    "unseen": "unseen",
    "new_wording": "new wording",
    "two_skill": "two skills",
    "mean_id_ood": "mean of ID and OOD",
}


def accuracy_markdown(report: Mapping[str, Any]) -> str:
    """Provenance, the table of all strategies and the paired differences from the default.

    Raises:
        InvalidInput: `malformed_report`.
    """
    try:
        return "\n\n".join((_provenance(report), _shares(report), _differences(report)))
    except (KeyError, TypeError) as error:
        raise InvalidInput(
            f"The report has no {error}.",
            code="malformed_report",
            remedy="Give what `hilora bench accuracy --out` wrote.",
            place="json",
        ) from error


def _provenance(report: Mapping[str, Any]) -> str:
    machine, base = report["machine"], report["references"]["base"]
    asked = ", ".join(
        f"{base[setting]['n']} prompts of {base[setting]['num_tasks']} tasks {_HEADINGS[setting]}"
        for setting in _settings(report)
    )
    held_back = ", ".join(f"`{name}`" for name in report.get("held_back", {}))
    return (
        f"`{report['testbed']}`, {report['split']} split ({asked}), seed {report['seed']}, commit "
        f"`{machine['commit']}`, {machine['cpu']}, {machine['num_threads']} thread(s), torch {machine['torch']}. "
        f"In brackets 95 % bootstrap intervals over tasks.{f' Held back: {held_back}.' if held_back else ''}"
    )


def _shares(report: Mapping[str, Any]) -> str:
    columns = [*_settings(report), "mean_id_ood"]
    lines = [
        _row(
            "strategy", *(_HEADINGS[column] for column in columns), "ID normalised", "adapters", "ROCs", "ms to decide"
        ),
        _rule(len(columns) + 5),
    ]
    for name, entry in _ranked(report):
        cost = entry["ood"]["cost"]
        lines.append(
            _row(
                f"**{name}**" if name == report["default"] else name,
                *(_share(entry[column]) for column in columns),
                f"{entry['id']['normalized']:.3f}",
                f"{cost['candidates']:.1f}",
                f"{cost['rocs']:.0f}",
                f"{cost['decide_ms']:.1f}",
            )
        )
    return "\n".join(lines)


def _differences(report: Mapping[str, Any]) -> str:
    columns = [*_settings(report), "mean_id_ood"]
    lines = [_row("minus the default", *(_HEADINGS[column] for column in columns)), _rule(len(columns) + 1)]
    for name, entry in _ranked(report):
        if name != report["default"]:
            lines.append(_row(name, *(_gap(entry[column]["vs_default"]) for column in columns)))
    return "\n".join(lines)


def _settings(report: Mapping[str, Any]) -> list[str]:
    base = report["references"]["base"]
    return [setting for setting in SETTINGS if base[setting]["exact_match"] is not None]


def _ranked(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """All strategies by the mean of ID and OOD, best first; the references among them once."""
    entries = {**report["strategies"], **report["references"]}
    return sorted(entries.items(), key=lambda item: -item[1]["mean_id_ood"]["exact_match"])


def _share(found: Mapping[str, Any]) -> str:
    low, high = found["ci"]
    return f"{found['exact_match']:.3f} [{low:.3f} {high:.3f}]"


def _gap(found: Mapping[str, Any]) -> str:
    low, high = found["ci"]
    return f"{found['difference']:+.3f} [{low:+.3f} {high:+.3f}]"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(num_cells: int) -> str:
    return f"|{'---|' * num_cells}"
