"""`hilora adapters`: what an operator does with the pool of a running server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hilora_cli import adapter_lifecycle
from hilora_cli.confusability import audit
from hilora_cli.pool_upload import add_pool
from hilora_cli.server_call import fetched, print_answer, with_client
from hilora_cli.server_options import DEFAULT_URL, AdminKeyOption, JsonOption, NameArgument, UrlOption

if TYPE_CHECKING:
    from hilora_cli.adapter_upload import AdapterUpload
    from hilora_cli.api_client import ApiClient

app = typer.Typer(
    help="The adapters of a running server: add, list, audit, review, roll back, remove; follow and cancel ingests.",
    no_args_is_help=True,
    epilog="Exit status: 0 done, 1 refused or failed, 2 misused, 3 try again later, 4 the key does not open this.",
)

_SECONDS_BEFORE_RECONNECTING = 1.0

JobArgument = Annotated[str, typer.Argument(help="Identity of the job.")]


@app.command("add")
def add(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder or archive of a PEFT adapter, owner/name[@revision] of the hub, or s3://... or https://... "
            "where the server allows it."
        ),
    ],
    name: Annotated[str | None, typer.Option("--name", help="Public name. [default: the folder's]")] = None,
    samples: Annotated[
        Path | None,
        typer.Option("--samples", exists=True, dir_okay=False, help='Prompts of its task, {"text": ...} a line.'),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until it is READY or FAILED.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a version of the same name.")] = False,
    squeeze_rank: Annotated[
        int | None, typer.Option("--squeeze-rank", min=1, help="Compress it to this rank in every module.")
    ] = None,
    squeeze_energy: Annotated[
        float | None,
        typer.Option("--squeeze-energy", min=0, max=1, help="Compress it to this share of each module's energy."),
    ] = None,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    api_key: AdminKeyOption = None,
) -> None:
    """Register an adapter."""
    from hilora_cli.adapter_upload import AdapterUpload

    if squeeze_rank is not None and squeeze_energy is not None:
        raise typer.BadParameter("--squeeze-rank and --squeeze-energy exclude each other.")
    squeeze = {"rank": squeeze_rank} if squeeze_rank is not None else {"energy": squeeze_energy}
    upload = AdapterUpload(
        source=source,
        name=name,
        samples=samples.read_bytes() if samples else None,
        replaces=replace,
        squeeze=squeeze if any(squeeze.values()) else None,
    )
    job = with_client(url, api_key, lambda client: _register(client, upload, wait=wait))
    print_answer(job, f"{job['adapter_name']} {job['state']} (job {job['job_id']})", as_json=as_json)


@app.command("list")
def list_adapters(
    prefix: Annotated[str, typer.Option("--prefix", help="Only names that begin so.")] = "",
    tags: Annotated[list[str] | None, typer.Option("--tag", help="Only with this tag; may be repeated.")] = None,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    api_key: AdminKeyOption = None,
) -> None:
    """Show the registered adapters."""
    from hilora_cli.adapter_tables import adapter_table
    from hilora_cli.pool_seeding import listed_adapters

    entries = with_client(url, api_key, lambda client: listed_adapters(client, prefix=prefix, tags=tags or ()))
    print_answer(entries, adapter_table(entries), as_json=as_json)


@app.command("show")
def show(
    name: NameArgument,
    # Read by nobody: scripts may give `--json` to every command, and this one has no other form.
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, as it always does.")] = True,  # noqa: ARG001  (scripts may say so)
    url: UrlOption = DEFAULT_URL,
    api_key: AdminKeyOption = None,
) -> None:
    """Show all that is known of one adapter, as JSON."""
    print_answer(fetched(f"/v1/adapters/{name}", url, api_key), "", as_json=True)


@app.command("remove")
def remove(
    name: NameArgument, as_json: JsonOption = False, url: UrlOption = DEFAULT_URL, api_key: AdminKeyOption = None
) -> None:
    """Take an adapter out of the catalogue; requests that run with it finish."""
    answer = with_client(url, api_key, lambda client: client.delete(f"/v1/adapters/{name}"))
    print_answer(answer, f"{name} removed", as_json=as_json)


@app.command("jobs")
def jobs(
    state: Annotated[str | None, typer.Option("--state", help="Only jobs in this state, such as FAILED.")] = None,
    adapter: Annotated[str | None, typer.Option("--adapter", help="Only jobs of this adapter.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Most jobs, newest first.")] = 50,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    api_key: AdminKeyOption = None,
) -> None:
    """Show ingests, newest first."""
    from urllib.parse import urlencode

    from hilora_cli.adapter_tables import job_table

    wanted = {"limit": limit, "state": state.upper() if state else None, "adapter": adapter}
    query = urlencode({key: value for key, value in wanted.items() if value is not None})
    found = fetched(f"/v1/jobs?{query}", url, api_key)["data"]
    print_answer(found, job_table(found), as_json=as_json)


@app.command("cancel")
def cancel(
    job_id: JobArgument, as_json: JsonOption = False, url: UrlOption = DEFAULT_URL, api_key: AdminKeyOption = None
) -> None:
    """Call an ingest off: at once if it waits, else at its next safe point."""
    job = with_client(url, api_key, lambda client: client.delete(f"/v1/jobs/{job_id}"))
    text = "cancelled" if job["state"] == "CANCELLED" else f"will stop ({job['state']})"
    print_answer(job, f"{job['adapter_name']} {text}", as_json=as_json)


@app.command("events")
def events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay and show changes as they happen.")] = False,
    after: Annotated[
        int | None, typer.Option("--after", min=0, help="Changes after this generation. [default: all, or from now on]")
    ] = None,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    api_key: AdminKeyOption = None,
) -> None:
    """Show changes of the catalogue: + added or replaced, - removed. With --json one object a line."""
    start = after if after is not None or follow else 0
    with_client(url, api_key, lambda client: _show_changes(client, start, follow=follow, as_json=as_json))


@app.command("audit-log")
def audit_log(
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Most changes, newest first.")] = 50,
    before: Annotated[str | None, typer.Option("--before", help="next_before of an earlier --json answer.")] = None,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    api_key: AdminKeyOption = None,
) -> None:
    """Show who changed what."""
    from hilora_cli.adapter_tables import audit_table

    page = fetched(f"/v1/audit?limit={limit}" + (f"&before={before}" if before else ""), url, api_key)
    print_answer(page, audit_table(page["data"]), as_json=as_json)


app.command("audit")(audit)
app.command("add-pool")(add_pool)
adapter_lifecycle.add_commands(app)


async def _register(client: ApiClient, upload: AdapterUpload, *, wait: bool) -> dict[str, Any]:
    """Send, and follow to the end if wanted, with a bar for each on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    from hilora_cli.adapter_upload import submit, wait_for_job

    columns = (TextColumn("{task.description:<12}"), BarColumn(), TextColumn("{task.fields[detail]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("UPLOADING", total=1.0, detail="")

        def show_bytes(sent: int, total: int) -> None:
            progress.update(
                bar, completed=sent / max(total, 1), detail=f"{sent / 2**20:.1f} of {total / 2**20:.1f} MiB"
            )

        def show_job(job: dict[str, Any]) -> None:
            progress.update(bar, description=job["state"], completed=job["progress"], detail=job["detail"])

        job = await submit(client, upload, on_bytes=show_bytes)
        return await wait_for_job(client, job, on_job=show_job) if wait else job


async def _show_changes(client: ApiClient, after: int | None, *, follow: bool, as_json: bool) -> None:
    """Print changes: until there is silence; or with `follow` until the user ends it, across restarts of the server."""
    import asyncio
    import json

    from hilora.errors import Unavailable
    from hilora_cli.adapter_tables import change_line

    path = "/v1/adapters/events" + (f"?after={after}" if after is not None else "")
    last_event_id: str | None = None
    has_connected = False
    while True:
        try:
            async for event in client.events(path, last_event_id=last_event_id):
                has_connected = True
                if event is not None:
                    last_event_id = event.event_id
                    line = {"event": event.event, **event.data}
                    print(json.dumps(line) if as_json else change_line(event.event, event.data), flush=True)
                elif not follow:
                    return
        except Unavailable:
            if not follow or not has_connected:
                raise
        if not follow:
            return
        await asyncio.sleep(_SECONDS_BEFORE_RECONNECTING)
