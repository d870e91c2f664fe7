"""`hilora adapters audit`: which adapters are likely to be taken for one another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hilora_cli.server_call import print_answer, with_client
from hilora_cli.server_options import DEFAULT_URL, AdminKeyOption, JsonOption, UrlOption

if TYPE_CHECKING:
    from rich.table import Table

    from hilora_cli.api_client import ApiClient, JsonObject

_PAGE = 500
_COLOURS = {"merge": "red", "redescribe": "yellow", "add_samples": "yellow", "fine": "green"}


def audit(
    name: Annotated[str | None, typer.Argument(help="One adapter in detail. [default: the whole pool]")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Adapters to show, those at most risk first.")] = 50,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    api_key: AdminKeyOption = None,
) -> None:
    """Say which adapters are hard to tell apart, and what to do about it."""
    report = with_client(url, api_key, lambda client: _ask(client, name, limit=limit))
    print_answer(report, confusability_table(report) if name is None else rival_table(report), as_json=as_json)
    if name is not None and not as_json:
        print_answer(report, report["explanation"], as_json=False)


async def _ask(client: ApiClient, name: str | None, *, limit: int) -> JsonObject:
    if name is not None:
        return await client.get(f"/v1/adapters/{name}/confusability")
    report = await client.get(f"/v1/adapters/audit?limit={min(limit, _PAGE)}")
    while len(report["data"]) < min(limit, report["num_audited"]):
        offset = len(report["data"])
        page = await client.get(f"/v1/adapters/audit?offset={offset}&limit={min(limit - offset, _PAGE)}")
        if not page["data"]:
            break  # the pool shrank in between
        report["data"] += page["data"]
    return report


def confusability_table(report: dict[str, Any]) -> Table:
    """The pool, one adapter a row."""
    from rich.table import Table

    title = f"{len(report['data'])} of {report['num_audited']} adapters, those at most risk first"
    if report["num_passed_over"]:
        title += f" ({report['num_passed_over']} without comparable samples)"
    table = Table(title=title)
    table.add_column("adapter", no_wrap=True)
    table.add_column("routed right", justify="right")
    table.add_column("nearest", no_wrap=True)
    for heading in ("distance", "same task", "overlap"):
        table.add_column(heading, justify="right")
    table.add_column("advice", no_wrap=True)
    for row in report["data"]:
        nearest = row["rivals"][0] if row["rivals"] else None
        table.add_row(
            row["name"],
            f">= {row['routed_right_at_least']:.1%}",
            *(("", "", "", "") if nearest is None else (nearest["name"], *_numbers(nearest))),
            f"[{_COLOURS.get(row['advice'], 'default')}]{row['advice']}[/]",
        )
    return table


def rival_table(report: dict[str, Any]) -> Table:
    """One adapter's rivals, nearest first."""
    from rich.table import Table

    table = Table(title=f"{report['name']}: routed right >= {report['routed_right_at_least']:.1%}, {report['advice']}")
    table.add_column("may be taken for", no_wrap=True)
    for heading in ("distance", "same task", "overlap", "errs at most"):
        table.add_column(heading, justify="right")
    for rival in report["rivals"]:
        table.add_row(rival["name"], *_numbers(rival), f"{rival['error_bound']:.1%}")
    return table


def _numbers(rival: dict[str, Any]) -> tuple[str, str, str]:
    overlap = rival["overlap"]
    same_task = f"{rival['same_task_ratio']:.2f}"
    return (
        f"{rival['distance']:.2f}",
        f"[red]{same_task}[/]" if rival["is_near_duplicate"] else same_task,
        "" if overlap is None else f"{overlap['cosine']:.2f}",
    )
