"""`hilora adapters add-pool`: a folder full of adapters, registered with a running server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hilora_cli.server_call import print_answer, with_client
from hilora_cli.server_options import DEFAULT_URL, AdminKeyOption, JsonOption, UrlOption

if TYPE_CHECKING:
    from hilora.errors import HiloraError
    from hilora_cli.adapter_upload import AdapterUpload
    from hilora_cli.api_client import ApiClient


def add_pool(
    folder: Annotated[
        Path,
        typer.Argument(exists=True, file_okay=False, help="A folder whose subfolders are adapters, or a testbed."),
    ],
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    api_key: AdminKeyOption = None,
) -> None:
    """Register every adapter of a folder whose name is not registered yet; one that is refused keeps no other."""
    from hilora_cli.pool_seeding import uploads_of, uploads_of_testbed

    uploads = uploads_of_testbed(folder) if (folder / "tasks.jsonl").is_file() else uploads_of(folder)
    added, failed = with_client(url, api_key, lambda client: _add(client, uploads))
    answer = {"added": added, "failed": failed, "present": len(uploads) - len(added) - len(failed)}
    text = f"{len(added)} adapters added, {answer['present']} were there, {len(failed)} refused"
    print_answer(answer, text, as_json=as_json)
    if failed:
        raise typer.Exit(1)


async def _add(client: ApiClient, uploads: list[AdapterUpload]) -> tuple[list[str], dict[str, str]]:
    """Names that were added, and for those that were not, why."""
    from hilora_cli.failure import print_failure
    from hilora_cli.pool_seeding import missing_from, seed

    added: list[str] = []
    failed: dict[str, str] = {}

    def on_seeded(name: str, failure: HiloraError | None) -> None:
        if failure is None:
            added.append(name)
        else:
            failed[name] = str(failure)
            print_failure(f"{name}: {failure.message}", failure.remedy, code=failure.code)

    await seed(client, await missing_from(client, uploads), on_seeded=on_seeded)
    return sorted(added), failed
