"""`hilora generate`: an answer, and which adapters gave it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hilora_cli.server_options import DEFAULT_URL, ApiKeyOption, ExcludeOption, UrlOption

if TYPE_CHECKING:
    from rich.text import Text


def generate(
    text: Annotated[str, typer.Argument(help="The prompt.")],
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Show the text as it comes.")] = True,
    model: Annotated[str, typer.Option("--model", help="`auto`, the base's name or an adapter's.")] = "auto",
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer.")] = 64,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, max=2.0, help="0 is greedy.")] = 0.0,
    exclude: ExcludeOption = None,
    url: UrlOption = DEFAULT_URL,
    api_key: ApiKeyOption = None,
) -> None:
    """Continue a text, then say which adapters ran."""
    import asyncio

    from rich.console import Console

    body = {
        "model": model,
        "prompt": text,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "hilora": {"exclude_adapters": exclude or []},
    }
    ask = _stream if stream else _complete
    plan = asyncio.run(ask(url, api_key, body))
    # The answer alone goes to standard output, so that it can be piped.
    Console(stderr=True).print(adapters_line(plan))


async def _complete(url: str, api_key: str | None, body: dict[str, Any]) -> dict[str, Any]:
    from hilora_cli.api_client import ApiClient

    async with ApiClient(url, api_key=api_key) as client:
        answer = await client.post("/v1/completions", body)
    print(answer["choices"][0]["text"])
    return answer["hilora"]


async def _stream(url: str, api_key: str | None, body: dict[str, Any]) -> dict[str, Any]:
    from hilora_cli.api_client import ApiClient

    plan: dict[str, Any] = {}
    async with ApiClient(url, api_key=api_key) as client:
        async for event in client.stream("/v1/completions", body | {"stream": True}):
            for choice in event["choices"]:
                print(choice["text"], end="", flush=True)
            plan = event.get("hilora", plan)
    print()
    return plan


def adapters_line(plan: dict[str, Any]) -> Text:
    """Which adapters ran, with their ROCs, from the `hilora` object of an answer."""
    from rich.text import Text

    names = [
        f"{adapter['name']} ({adapter['num_rocs']} of {adapter['lora_rank']} ROCs, weight {adapter['weight']:.2f})"
        for adapter in plan["adapters"]
    ]
    line = Text("answered by ", style="dim")
    line.append(", ".join(names) if names else "the base model alone", style="bold")
    if plan["is_out_of_distribution"]:
        line.append(" – out of distribution", style="yellow")
    return line
