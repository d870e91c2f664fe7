"""`hilora adapters ...`: what happens to an adapter after its ingest: versions, reviews, access, profiles, aliases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hilora_cli.server_call import fetched, print_answer, with_client
from hilora_cli.server_options import DEFAULT_URL, AdminKeyOption, JsonOption, NameArgument, UrlOption

if TYPE_CHECKING:
    from hilora_cli.api_client import ApiClient

VersionOption = Annotated[
    str | None, typer.Option("--version", help="Its number, or at least 8 digits of its revision.")
]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the record.")]
ReviewerOption = Annotated[str | None, typer.Option("--reviewer", help="Who decides. [default: the key's name]")]


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the group `adapters`."""
    for command in (versions, rollback, quarantine, approve, reject, access, tags, samples, profile, alias):
        app.command(command.__name__)(command)


def versions(
    name: NameArgument, as_json: JsonOption = False, url: UrlOption = DEFAULT_URL, api_key: AdminKeyOption = None
) -> None:
    """Show the versions of an adapter; * is what the bare name means."""
    from hilora_cli.lifecycle_tables import version_table

    history = fetched(f"/v1/adapters/{name}/versions", url, api_key)
    print_answer(history, version_table([history]), as_json=as_json)


def rollback(
    name: NameArgument,
    version: VersionOption = None,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    api_key: AdminKeyOption = None,
) -> None:
    """Let a name mean an earlier version again; by default the last one before the current one."""
    body = {"version": version}
    state = with_client(url, api_key, lambda client: client.post(f"/v1/adapters/{name}/rollback", body))
    print_answer(state, f"{name} is {_shown(state)}", as_json=as_json)


def quarantine(as_json: JsonOption = False, url: UrlOption = DEFAULT_URL, api_key: AdminKeyOption = None) -> None:
    """Show the versions that wait for a decision."""
    from hilora_cli.lifecycle_tables import version_table

    histories = fetched("/v1/quarantine", url, api_key)["data"]
    print_answer(histories, version_table(histories, state="QUARANTINED"), as_json=as_json)


def approve(
    name: NameArgument,
    version: VersionOption = None,
    reason: ReasonOption = "",
    reviewer: ReviewerOption = None,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    api_key: AdminKeyOption = None,
) -> None:
    """Serve a version that waits in quarantine; by default the newest."""
    body = {"version": version, "reason": reason, "reviewer": reviewer}
    state = with_client(url, api_key, lambda client: client.post(f"/v1/adapters/{name}/approve", body))
    print_answer(state, f"{name} is {_shown(state)}", as_json=as_json)


def reject(
    name: NameArgument,
    version: VersionOption = None,
    reason: ReasonOption = "",
    reviewer: ReviewerOption = None,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    api_key: AdminKeyOption = None,
) -> None:
    """Decide against a version that waits in quarantine; by default the newest."""
    body = {"version": version, "reason": reason, "reviewer": reviewer}
    state = with_client(url, api_key, lambda client: client.post(f"/v1/adapters/{name}/reject", body))
    print_answer(state, f"rejected; {name} is {_shown(state)}", as_json=as_json)


def access(
    name: NameArgument,
    tier: Annotated[str | None, typer.Option("--tier", help="untrusted, community or trusted.")] = None,
    tenants: Annotated[
        list[str] | None, typer.Option("--visible-to", help="A tenant that may use it; may be repeated.")
    ] = None,
    everybody: Annotated[bool, typer.Option("--everybody", help="Let every tenant use it.")] = False,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    api_key: AdminKeyOption = None,
) -> None:
    """Say who may use an adapter and how far you vouch for it; without options show both."""
    if tenants and everybody:
        raise typer.BadParameter("--visible-to and --everybody exclude each other.")

    async def changed(client: ApiClient) -> dict[str, Any]:
        history = await client.get(f"/v1/adapters/{name}/versions")
        known = {"trust_tier": history["trust_tier"], "visible_to": history["visible_to"]}
        if tier is None and not tenants and not everybody:
            return {"name": name, **known}
        # What is not named stays as it is: the route replaces both.
        wanted = {
            "trust_tier": tier or known["trust_tier"],
            "visible_to": [] if everybody else tenants or known["visible_to"],
        }
        state = await client.put(f"/v1/adapters/{name}/access", wanted)
        return {"name": name, **wanted, "catalog_generation": state["catalog_generation"]}

    shown = with_client(url, api_key, changed)
    who = ", ".join(shown["visible_to"]) or "everybody"
    print_answer(shown, f"{name}: {shown['trust_tier']}, visible to {who}", as_json=as_json)


def tags(
    name: NameArgument,
    wanted: Annotated[list[str] | None, typer.Argument(metavar="[TAG]...", help="All its tags from now on.")] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Take all tags away.")] = False,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    api_key: AdminKeyOption = None,
) -> None:
    """Say by which words requests may ask for an adapter; without tags show them."""
    if wanted and clear:
        raise typer.BadParameter("tags and --clear exclude each other.")

    async def changed(client: ApiClient) -> dict[str, Any]:
        if wanted or clear:
            await client.put(f"/v1/adapters/{name}/tags", {"tags": wanted or []})
        return {"name": name, "tags": (await client.get(f"/v1/adapters/{name}"))["tags"]}

    shown = with_client(url, api_key, changed)
    print_answer(shown, f"{name}: {', '.join(shown['tags']) or 'no tags'}", as_json=as_json)


def samples(
    name: NameArgument,
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help='More prompts of its task, {"text": ...} a line.')
    ],
    wait: Annotated[bool, typer.Option("--wait", help="Stay until they are in use.")] = False,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    api_key: AdminKeyOption = None,
) -> None:
    """Describe an adapter's task better; its weights and all running requests stay."""
    from hilora_cli.adapter_upload import texts_of, wait_for_job

    body = {"samples": texts_of(file.read_bytes())}

    async def added(client: ApiClient) -> dict[str, Any]:
        job = await client.post(f"/v1/adapters/{name}/samples", body)
        return await wait_for_job(client, job) if wait else job

    job = with_client(url, api_key, added)
    print_answer(job, f"{name} {job['state']} (job {job['job_id']})", as_json=as_json)


def profile(
    name: NameArgument,
    source: Annotated[
        str, typer.Option("--source", help="auto, dataset, card or self_portrait: what the texts come from.")
    ] = "auto",
    wait: Annotated[bool, typer.Option("--wait", help="Stay until it is in use.")] = False,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    api_key: AdminKeyOption = None,
) -> None:
    """Have an adapter described anew from what can be found of its task."""
    from hilora_cli.adapter_upload import wait_for_job

    async def ordered(client: ApiClient) -> dict[str, Any]:
        job = await client.post(f"/v1/adapters/{name}/profile", {"source": source})
        return await wait_for_job(client, job) if wait else job

    job = with_client(url, api_key, ordered)
    print_answer(job, f"{name} {job['state']} (job {job['job_id']})", as_json=as_json)


def alias(
    name: Annotated[str | None, typer.Argument(metavar="[ALIAS]", help="The alias.")] = None,
    target: Annotated[str | None, typer.Argument(help="What it stands for: name, or name@version.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Let it stand for nothing.")] = False,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    api_key: AdminKeyOption = None,
) -> None:
    """Show the aliases; or let one stand for an adapter, for one version of it, or for nothing."""
    from hilora_cli.lifecycle_tables import alias_table

    if name is None and not delete:
        found = fetched("/v1/aliases", url, api_key)["data"]
        print_answer(found, alias_table(found), as_json=as_json)
        return
    if name is None or delete == (target is not None):
        raise typer.BadParameter("give an alias, and either a target or --delete.")
    path = f"/v1/aliases/{name}"
    if delete:
        gone = with_client(url, api_key, lambda client: client.delete(path))
        print_answer(gone, f"{name} stands for nothing", as_json=as_json)
        return
    put = with_client(url, api_key, lambda client: client.put(path, {"target": target}))
    print_answer(put, f"{name} stands for {put['target']}", as_json=as_json)


def _shown(state: dict[str, Any]) -> str:
    """What a name means after a change."""
    return f"version {state['version']}, {state['adapter_id']}" if state["version"] else f"{state['state']}"
