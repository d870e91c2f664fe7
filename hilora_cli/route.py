"""`hilora route`: which adapters a text would be answered by, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hilora_cli.server_options import DEFAULT_URL, ApiKeyOption, ExcludeOption, UrlOption

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_BAR_CELLS = 16
_EIGHTHS = " ▏▎▍▌▋▊▉"


def route(
    text: Annotated[str, typer.Argument(help="The text to choose adapters for.")],
    exclude: ExcludeOption = None,
    strategy: Annotated[
        str | None, typer.Option("--strategy", help="How adapters are chosen. [default: the router's own]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the server's answer as it is.")] = False,
    url: UrlOption = DEFAULT_URL,
    api_key: ApiKeyOption = None,
) -> None:
    """Show which adapters a text would be answered by, and why. Nothing is generated."""
    import asyncio
    import json

    from rich.console import Console

    from hilora_cli.api_client import ApiClient

    async def ask() -> dict[str, Any]:
        async with ApiClient(url, api_key=api_key) as client:
            wishes = {"exclude_adapters": exclude or []} | ({} if strategy is None else {"strategy": strategy})
            return await client.post("/v1/route", {"text": text, "hilora": wishes})

    answer = asyncio.run(ask())
    if as_json:
        print(json.dumps(answer, indent=2))
        return
    console = Console()
    console.print(candidate_table(answer))
    console.print(verdict(answer))


def candidate_table(answer: dict[str, Any]) -> Table:
    """The candidates of a `/v1/route` answer: chosen ones first and bright, runners-up dimmed."""
    from rich.table import Table

    table = Table(title="Candidates", caption="LLR: log-likelihood ratio to a task that has no adapter")
    table.add_column("adapter", no_wrap=True)
    table.add_column("LLR", justify="right")
    table.add_column("posterior", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("ROCs", justify="right")
    table.add_column("weight", justify="right")
    ranks = {budget["name"]: budget["lora_rank"] for budget in answer["plan"]["budgets"]}
    for candidate in answer["candidates"]:
        is_chosen = candidate["num_rocs"] > 0
        table.add_row(
            candidate["name"],
            f"{candidate['log_likelihood_ratio']:+.1f}",
            f"{candidate['posterior']:.3f}",
            posterior_bar(candidate["posterior"]),
            f"{candidate['num_rocs']} of {ranks[candidate['name']]}" if candidate["name"] in ranks else "–",
            f"{candidate['weight']:.2f}" if is_chosen else "–",
            style="bold" if is_chosen else "dim",
        )
    return table


def posterior_bar(share: float) -> str:
    """A share as a bar, to an eighth of a character."""
    eighths = round(max(0.0, min(1.0, share)) * _BAR_CELLS * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(_BAR_CELLS)


def verdict(answer: dict[str, Any]) -> Text:
    """In or out of distribution, the reason, and the state it was decided in."""
    from rich.text import Text

    is_out = answer["is_out_of_distribution"]
    line = Text()
    line.append(
        "Out of distribution: no adapter was made for this. " if is_out else "In distribution. ",
        style="yellow" if is_out else "green",
    )
    line.append(answer["reason"])
    plan = answer["plan"]
    line.append(
        f"\n{plan['num_rocs']} ROCs, mode {answer['mode']}, catalogue generation {answer['catalog_generation']}, "
        f"decided in {1000 * sum(answer['timings'].values()):.0f} ms.",
        style="dim",
    )
    return line
