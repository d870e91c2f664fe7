"""Adapters, jobs, catalogue changes and audit events as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def adapter_table(entries: Sequence[dict[str, Any]]) -> Table:
    """Registered adapters, one a row."""
    table = new_table(f"{len(entries)} adapters", "adapter", "revision")
    for heading in ("rank", "modules", "samples", "since"):
        table.add_column(heading, justify="right")
    table.add_column("registered (UTC)", no_wrap=True)
    for entry in entries:
        table.add_row(
            entry["name"],
            entry["revision"][:8],
            str(entry["lora_rank"]),
            str(entry["num_modules"]),
            str(entry["num_samples"]),
            str(entry["catalog_generation"]),
            minute(entry["created_at"]),
        )
    return table


def job_table(jobs: Sequence[dict[str, Any]]) -> Table:
    """Ingests, one a row."""
    table = new_table(f"{len(jobs)} jobs", "job", "adapter", "state")
    table.add_column("done", justify="right")
    table.add_column("what")
    table.add_column("submitted (UTC)", no_wrap=True)
    for job in jobs:
        error = job.get("error")
        what = f"{error['code']}: {error['message']}" if error else job["detail"]
        share = f"{job['progress']:.0%}"
        table.add_row(job["job_id"], job["adapter_name"], job["state"], share, what, minute(job["created_at"]))
    return table


def audit_table(events: Sequence[dict[str, Any]]) -> Table:
    """Lines of the audit log, one a row."""
    table = new_table(f"{len(events)} changes", "when (UTC)", "who", "what", "adapter")
    table.add_column("outcome")
    for event in events:
        outcome = event["outcome"] + (f" ({event['code']})" if event["code"] else "")
        table.add_row(_second(event["at"]), event["principal"], event["action"], event["adapter"] or "", outcome)
    return table


def change_line(event: str, data: dict[str, Any]) -> str:
    """One change of the catalogue."""
    generation = data["catalog_generation"]
    if event == "upsert":
        return f"{generation} + {data['adapter']['adapter_id']}"
    if event == "remove":
        return f"{generation} - {data['name']}"
    return f"{generation} the changes before are not kept: list the adapters again"


def new_table(title: str, *columns: str) -> Table:
    """A table whose columns so far never break their words."""
    from rich.table import Table

    table = Table(title=title)
    for heading in columns:
        table.add_column(heading, no_wrap=True)
    return table


def minute(seconds: float) -> str:
    """A time in Unix seconds, in UTC and to the minute."""
    return _second(seconds)[:-3]


def _second(seconds: float) -> str:
    from datetime import UTC, datetime

    return f"{datetime.fromtimestamp(seconds, tz=UTC):%Y-%m-%d %H:%M:%S}"
