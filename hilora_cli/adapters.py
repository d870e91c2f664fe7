"""`hilora adapters`: add, list, show, audit, remove."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hilora_cli.audit import audit
from hilora_cli.server_options import DEFAULT_URL, ApiKeyOption, UrlOption

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(help="Add, list, show, audit and remove adapters of a running server.", no_args_is_help=True)

app.command("audit")(audit)

NameArgument = Annotated[str, typer.Argument(help="Name of the adapter.")]


@app.command("add")
def add(
    source: Annotated[str, typer.Argument(help="A folder or archive of a PEFT adapter, or owner/name[@revision].")],
    name: Annotated[str | None, typer.Option("--name", help="Public name. [default: the folder's]")] = None,
    samples: Annotated[
        Path | None,
        typer.Option("--samples", exists=True, dir_okay=False, help='Prompts of its task, {"text": ...} a line.'),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until it is READY or FAILED.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a version of the same name.")] = False,
    url: UrlOption = DEFAULT_URL,
    api_key: ApiKeyOption = None,
) -> None:
    """Register an adapter."""
    import asyncio

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    from hilora_cli.adapter_upload import AdapterUpload, submit, wait_for_job
    from hilora_cli.api_client import ApiClient, JsonObject

    upload = AdapterUpload(
        source=source, name=name, samples=samples.read_bytes() if samples else None, replaces=replace
    )
    console = Console(stderr=True)

    async def register() -> JsonObject:
        async with ApiClient(url, api_key=api_key) as client:
            job = await submit(client, upload)
            if not wait:
                return job
            columns = (TextColumn("{task.description:<12}"), BarColumn(), TextColumn("{task.fields[detail]}"))
            with Progress(*columns, console=console, transient=True) as progress:
                bar = progress.add_task(job["state"], total=1.0, detail="")

                def show(job: JsonObject) -> None:
                    progress.update(bar, description=job["state"], completed=job["progress"], detail=job["detail"])

                return await wait_for_job(client, job, on_job=show)

    job = asyncio.run(register())
    print(f"{job['adapter_name']} {job['state']} (job {job['job_id']})")


@app.command("list")
def list_adapters(url: UrlOption = DEFAULT_URL, api_key: ApiKeyOption = None) -> None:
    """Show the registered adapters."""
    from rich.console import Console

    entries = _get("/v1/adapters", url, api_key)["data"]
    Console().print(adapter_table(entries))


@app.command("show")
def show(name: NameArgument, url: UrlOption = DEFAULT_URL, api_key: ApiKeyOption = None) -> None:
    """Show all that is known of one adapter, as JSON."""
    import json

    print(json.dumps(_get(f"/v1/adapters/{name}", url, api_key), indent=2))


@app.command("remove")
def remove(name: NameArgument, url: UrlOption = DEFAULT_URL, api_key: ApiKeyOption = None) -> None:
    """Take an adapter out of the catalogue; requests that run with it finish."""
    import asyncio

    from hilora_cli.api_client import ApiClient

    async def retire() -> None:
        async with ApiClient(url, api_key=api_key) as client:
            await client.delete(f"/v1/adapters/{name}")

    asyncio.run(retire())
    print(f"{name} removed")


def _get(path: str, url: str, api_key: str | None) -> dict[str, Any]:
    import asyncio

    from hilora_cli.api_client import ApiClient

    async def ask() -> dict[str, Any]:
        async with ApiClient(url, api_key=api_key) as client:
            return await client.get(path)

    return asyncio.run(ask())


def adapter_table(entries: list[dict[str, Any]]) -> Table:
    """Registered adapters, one a row."""
    from datetime import UTC, datetime

    from rich.table import Table

    table = Table(title=f"{len(entries)} adapters")
    for heading in ("adapter", "revision"):
        table.add_column(heading, no_wrap=True)
    for heading in ("rank", "modules", "samples", "since"):
        table.add_column(heading, justify="right")
    table.add_column("registered (UTC)", no_wrap=True)
    for entry in entries:
        registered = datetime.fromtimestamp(entry["created_at"], tz=UTC)
        table.add_row(
            entry["name"],
            entry["revision"][:8],
            str(entry["lora_rank"]),
            str(entry["num_modules"]),
            str(entry["num_samples"]),
            str(entry["catalog_generation"]),
            f"{registered:%Y-%m-%d %H:%M}",
        )
    return table
