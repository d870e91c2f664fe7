"""Versions and aliases as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hilora_cli.adapter_tables import minute, new_table

if TYPE_CHECKING:
    from rich.table import Table


def version_table(histories: Sequence[dict[str, Any]], *, state: str | None = None) -> Table:
    """Versions of names, one a row, oldest first.

    Args:
        histories: `GET /v1/adapters/{name}/versions` of each name.
        state: only versions in this state.
    """
    rows = [
        (history["name"], version)
        for history in histories
        for version in history["versions"]
        if state is None or version["state"] == state
    ]
    table = new_table(f"{len(rows)} versions", "adapter")
    table.add_column("version", justify="right")
    for heading in ("revision", "state", "created (UTC)"):
        table.add_column(heading, no_wrap=True)
    table.add_column("decided")
    for name, version in rows:
        mark = "*" if version["is_current"] else ""
        table.add_row(
            name,
            f"{mark}{version['version']}",
            version["revision"][:12],
            version["state"],
            minute(version["created_at"]),
            _decision(version["review"]),
        )
    return table


def alias_table(aliases: Sequence[dict[str, Any]]) -> Table:
    """Aliases, one a row."""
    table = new_table(f"{len(aliases)} aliases", "alias", "stands for")
    for item in aliases:
        table.add_row(item["alias"], item["target"])
    return table


def _decision(review: dict[str, Any] | None) -> str:
    if review is None:
        return ""
    reason = f": {review['reason']}" if review["reason"] else ""
    return f"{review['reviewer']}{reason}"
