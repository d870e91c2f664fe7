"""Registers a folder full of adapters with a server that was just started, and may not be able to serve at once."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlencode

from hilora.errors import HiloraError, InvalidInput
from hilora_cli.adapter_upload import ADAPTER_CONFIG, AdapterUpload, submit, wait_for_job
from hilora_cli.api_client import ApiClient, JsonObject
from hilora_cli.patience import patiently

_CONCURRENT_UPLOADS = 8

OnSeeded = Callable[[str, HiloraError | None], None]
"""Called with (adapter name, why it failed) for every adapter that is done."""


def uploads_of(folder: Path) -> list[AdapterUpload]:
    """The adapters of a folder: itself, or its subfolders.

    Raises:
        InvalidInput: `no_adapters`, if there are none.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        return [AdapterUpload(source=str(folder), name=folder.absolute().name)]
    uploads = [
        AdapterUpload(source=str(child), name=child.name)
        for child in (sorted(folder.iterdir()) if folder.is_dir() else [])
        if (child / ADAPTER_CONFIG).is_file()
    ]
    if not uploads:
        raise InvalidInput(
            f"{folder} holds no adapter.",
            code="no_adapters",
            remedy=f"Give a folder with an {ADAPTER_CONFIG}, or one whose subfolders have it.",
            place=str(folder),
        )
    return uploads


def uploads_of_testbed(testbed: Path) -> list[AdapterUpload]:
    """The adapters of a testbed folder, each with its task's `fit` prompts as samples.

    Raises:
        InvalidInput: `no_adapters`.
        OSError: it has no `tasks.jsonl`.
    """
    texts: defaultdict[str, list[str]] = defaultdict(list)
    for line in (testbed / "tasks.jsonl").read_text(encoding="utf-8").split("\n"):
        if not line.strip():
            continue
        fields = json.loads(line)
        if fields["split"] == "fit":
            texts[fields["task"]].append(fields["prompt"])
    return [
        AdapterUpload(source=upload.source, name=upload.name, samples=samples_jsonl(texts[upload.name or ""]))
        for upload in uploads_of(testbed / "adapters")
    ]


def samples_jsonl(texts: Sequence[str]) -> bytes:
    """The content of a `samples.jsonl`."""
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


async def missing_from(client: ApiClient, uploads: Sequence[AdapterUpload]) -> list[AdapterUpload]:
    """Those whose name is not registered yet."""
    registered = {entry["name"] for entry in await patiently(lambda: listed_adapters(client))}
    return [upload for upload in uploads if upload.name not in registered]


async def listed_adapters(client: ApiClient, *, prefix: str = "", tags: Sequence[str] = ()) -> list[JsonObject]:
    """Every registered adapter whose name begins so and that bears all these tags, page by page."""
    found: list[JsonObject] = []
    page: JsonObject = {"next_after": ""}
    while page.get("next_after") is not None:
        query = urlencode([("prefix", prefix), ("after", page["next_after"]), *(("tag", tag) for tag in tags)])
        page = await client.get(f"/v1/adapters?{query}")
        found += page["data"]
    return found


async def seed(client: ApiClient, uploads: Sequence[AdapterUpload], *, on_seeded: OnSeeded) -> None:
    """Register adapters and wait for each; one that is refused does not keep the others."""
    gate = asyncio.Semaphore(_CONCURRENT_UPLOADS)

    async def register(upload: AdapterUpload) -> None:
        failure: HiloraError | None = None
        async with gate:
            try:
                key = uuid.uuid4().hex
                job = await patiently(lambda: submit(client, upload, idempotency_key=key))
                await wait_for_job(client, job)
            except HiloraError as error:
                failure = error
        on_seeded(upload.name or upload.source, failure)

    await asyncio.gather(*(register(upload) for upload in uploads))
