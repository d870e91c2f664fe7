"""Sends one adapter to a server and follows its ingest."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hilora.errors import HiloraError, InvalidInput
from hilora_cli.api_client import ApiClient, JsonObject

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
SAMPLES = "samples.jsonl"

_POLL_SECONDS = 0.2
_FINISHED_STATES = frozenset({"READY", "QUARANTINED", "FAILED", "RETIRED"})

OnJob = Callable[[JsonObject], None]
"""Called with the job's JSON whenever it was looked at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterUpload:
    """What to register."""

    source: str
    """A folder with an adapter, an archive of one, or a hub repository `owner/name[@revision]`."""
    name: str | None = None
    """By default the server takes the folder's, the archive's or the repository's name."""
    samples: bytes | None = None
    """The content of a `samples.jsonl`; by default the one beside the adapter's files."""
    replaces: bool = False
    """Whether another version of the same name may be replaced."""


async def submit(client: ApiClient, upload: AdapterUpload) -> JsonObject:
    """Start an ingest.

    Returns:
        The job, as the server describes it.

    Raises:
        InvalidInput: `no_adapter_files`, if the folder has no adapter.
        HiloraError: the server refused it.
    """
    files = await asyncio.to_thread(_files_of, upload)
    if files:
        fields: JsonObject = {"replace": str(upload.replaces).lower()}
        if name := upload.name or _folder_name(upload):
            fields["name"] = name
        return await client.upload("/v1/adapters", fields=fields, files=files)
    body: JsonObject = {
        "name": upload.name,
        "source": {"hub": upload.source},
        "samples": _texts_of(upload.samples or b""),
        "replace": upload.replaces,
    }
    return await client.post("/v1/adapters", body)


async def wait_for_job(client: ApiClient, job: JsonObject, *, on_job: OnJob | None = None) -> JsonObject:
    """Follow an ingest until it is over.

    Returns:
        The finished job.

    Raises:
        HiloraError: it failed; with the reason and the remedy of the job.
    """
    while True:
        if on_job is not None:
            on_job(job)
        if job["state"] in _FINISHED_STATES:
            break
        await asyncio.sleep(_POLL_SECONDS)
        job = await client.get(f"/v1/jobs/{job['job_id']}")
    if job["state"] == "FAILED":
        error = job.get("error") or {}
        raise HiloraError(
            str(error.get("message", job.get("detail", "The ingest failed."))),
            code=error.get("code"),
            remedy=error.get("remedy"),
            place=error.get("place"),
        )
    return job


def _files_of(upload: AdapterUpload) -> list[tuple[str, tuple[str, bytes]]]:
    """What to send as form files; nothing if the source is neither a folder nor a file, but a hub reference."""
    path = Path(upload.source)
    if path.is_dir():
        return _folder_files(path, upload.samples)
    if not path.is_file():
        return []
    files = [("archive", (path.name, path.read_bytes()))]
    if upload.samples is not None:
        files.append(("samples", (SAMPLES, upload.samples)))
    return files


def _folder_name(upload: AdapterUpload) -> str | None:
    """A folder names its adapter; an archive's name is the server's to find inside."""
    path = Path(upload.source)
    return path.absolute().name if path.is_dir() else None


def _folder_files(folder: Path, samples: bytes | None) -> list[tuple[str, tuple[str, bytes]]]:
    files: list[tuple[str, tuple[str, bytes]]] = []
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        file = folder / name
        if not file.is_file():
            raise InvalidInput(
                f"{folder} has no {name}.",
                code="no_adapter_files",
                remedy="Give a folder that PEFT's save_pretrained wrote.",
                place=str(folder),
            )
        files.append(("files", (name, file.read_bytes())))
    if samples is None and (folder / SAMPLES).is_file():
        samples = (folder / SAMPLES).read_bytes()
    if samples is not None:
        files.append(("samples", (SAMPLES, samples)))
    return files


def _texts_of(samples: bytes) -> list[str]:
    """The texts of a `samples.jsonl`, for a route that takes no file.

    Raises:
        InvalidInput: `invalid_samples`, with the line.
    """
    texts: list[str] = []
    for number, line in enumerate(samples.decode(errors="replace").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            texts.append(str(json.loads(line)["text"]))
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(
                f"Line {number} of the samples file is not an object with a text.",
                code="invalid_samples",
                remedy='Write one {"text": "a prompt of the adapter\'s task"} a line.',
                place=f"{SAMPLES}:{number}",
            ) from error
    return texts
