"""One call to a server from a command, and its answer on standard output."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hilora_cli.api_client import ApiClient


def with_client(url: str, api_key: str | None, ask: Callable[[ApiClient], Awaitable[Any]]) -> Any:
    """Do one thing with a client of the server.

    Args:
        url: where the server listens.
        api_key: its key, if it wants one.
        ask: what to do.

    Raises:
        HiloraError: what the server said.
    """
    import asyncio

    from hilora_cli.api_client import ApiClient

    async def call() -> Any:
        async with ApiClient(url, api_key=api_key) as client:
            return await ask(client)

    return asyncio.run(call())


def fetched(path: str, url: str, api_key: str | None) -> dict[str, Any]:
    """The JSON answer of a GET. Raises like `with_client`."""
    return with_client(url, api_key, lambda client: client.get(path))


def print_answer(answer: Any, readable: Any, *, as_json: bool) -> None:
    """Print an answer: for programs, or for people.

    Args:
        answer: what the server said.
        readable: a sentence, or something that rich renders.
        as_json: whether programs read it.
    """
    if as_json:
        import json

        print(json.dumps(answer, indent=2))
    elif isinstance(readable, str):
        print(readable)
    else:
        from rich.console import Console

        Console().print(readable)
