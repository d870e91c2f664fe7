"""What `hilora chat` shows of an answer beside its text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hilora_cli.conversation import Answer, Explain
from hilora_cli.gating_strip import gating_strips
from hilora_cli.generate import adapters_line
from hilora_cli.route import posterior_bar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


def show_adapters(console: Console, answer: Answer, explain: Explain) -> None:
    """Which adapters an answer comes from, as far as it is to be explained; nothing where none has begun."""
    if not answer.hilora:
        return
    if explain is Explain.OFF:
        console.print(adapters_line(answer.hilora), soft_wrap=True)
        return
    if answer.hilora["adapters"]:
        console.print(adapter_table(answer.hilora))
    strips = gating_strips(answer.hilora, width=console.width)
    if strips is not None:
        console.print(strips)
    console.print(footer(answer), soft_wrap=True)


def adapter_table(hilora: dict[str, Any]) -> Table:
    """The adapters at work: what each was granted, its weight as a bar, and its posterior if the answer tells it."""
    from rich.table import Table

    posteriors = {candidate["name"]: candidate["posterior"] for candidate in hilora.get("candidates", ())}
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="dim")
    for adapter in hilora["adapters"]:
        posterior = posteriors.get(adapter["name"])
        table.add_row(
            adapter["name"],
            f"{adapter['num_rocs']}/{adapter['lora_rank']} ROCs",
            posterior_bar(adapter["weight"]),
            f"{adapter['weight']:.2f}",
            "" if posterior is None else f"posterior {posterior:.3f}",
        )
    return table


def footer(answer: Answer) -> Text:
    """How it was decided, how long it took, and what is unusual."""
    from rich.text import Text

    hilora = answer.hilora
    line = Text(style="dim")
    if not hilora["adapters"]:
        line.append("the base model alone · ", style="bold")
    line.append(hilora["mode"])
    if answer.num_tokens is not None:
        plural = "" if answer.num_tokens == 1 else "s"
        line.append(f" · {answer.num_tokens} token{plural} in {answer.seconds:.1f} s")
    session = hilora.get("session") or {}
    if session.get("is_sticky"):
        line.append(" · plan kept")
    elif reason := session.get("reason"):
        line.append(f" · {reason}")
    if hilora["is_out_of_distribution"]:
        line.append(" · out of distribution: no adapter was made for this", style="yellow")
    if answer.finish_reason == "length":
        line.append(" · cut off at the limit of tokens", style="yellow")
    elif answer.finish_reason is None:
        line.append(" · interrupted", style="yellow")
    elif not answer.text:
        line.append(" · nothing to say", style="yellow")
    return line
