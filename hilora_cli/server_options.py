"""What commands ask for alike: how to find their server, which adapter, what to print."""

from __future__ import annotations

from typing import Annotated

import typer

UrlOption = Annotated[str, typer.Option("--url", envvar="HILORA_URL", help="Address of the server.")]
ApiKeyOption = Annotated[
    str | None,
    typer.Option("--api-key", envvar="HILORA_API_KEY", help="Bearer key, if the server wants one.", show_envvar=True),
]
AdminKeyOption = Annotated[
    str | None,
    typer.Option(
        "--admin-key",
        "--api-key",
        envvar=["HILORA_ADMIN_KEY", "HILORA_API_KEY"],
        help="Admin key, if the server wants one.",
        show_envvar=True,
    ),
]
NameArgument = Annotated[str, typer.Argument(help="Name of the adapter.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ExcludeOption = Annotated[
    list[str] | None, typer.Option("--exclude", help="An adapter that may not be used; may be repeated.")
]

DEFAULT_URL = "http://127.0.0.1:8000"
