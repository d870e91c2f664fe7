"""Sends one adapter to a server and follows its ingest."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from hilora.errors import HiloraError, InvalidInput, RequestAborted, Unavailable
from hilora_cli.api_client import ApiClient, JsonObject, UploadFile

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
WEIGHTS_INDEX = "adapter_model.safetensors.index.json"
WEIGHT_SHARDS = "adapter_model-*-of-*.safetensors"
CARD = "README.md"
SAMPLES = "samples.jsonl"

_SECONDS_BEFORE_RECONNECTING = 0.5
_RECONNECTIONS = 20
_FINISHED_STATES = frozenset({"READY", "QUARANTINED", "FAILED", "CANCELLED", "RETIRED"})

OnJob = Callable[[JsonObject], None]
"""Called with the job's JSON for each of its states."""
OnBytes = Callable[[int, int], None]
"""Called with the bytes of files that were sent so far, and that are to be sent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterUpload:
    """What to register."""

    source: str
    """A folder with an adapter, an archive of one, `s3://...` or `https://...`, or a hub repository
    `owner/name[@revision]`."""
    name: str | None = None
    """By default the server takes the folder's, the archive's or the repository's name."""
    samples: bytes | None = None
    """The content of a `samples.jsonl`; by default the one beside the adapter's files."""
    replaces: bool = False
    """Whether another version of the same name may be replaced."""
    squeeze: JsonObject | None = None
    """How to compress it when it is ingested: `{"rank": n}` or `{"energy": x}`; by default not at all."""


Part = tuple[str, str, Path | bytes]
"""`(form field, file name, content)` of a file to be sent."""


class _CountedFile:
    """An open file that tells how much of it was read.

    httpx asks for `fileno` to learn the length, and rewinds before it reads.
    """

    def __init__(self, stream: BinaryIO, on_read: Callable[[int], None]) -> None:
        self._stream = stream
        self._on_read = on_read

    def fileno(self) -> int:
        return self._stream.fileno()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._on_read(len(data))
        return data


async def submit(
    client: ApiClient, upload: AdapterUpload, *, on_bytes: OnBytes | None = None, idempotency_key: str | None = None
) -> JsonObject:
    """Start an ingest. Files are read while they are sent; a request that was cut off is not made twice.

    Args:
        client: of the server.
        upload: what to register.
        on_bytes: hears of the progress.
        idempotency_key: under which the same submission may be made again; by default one of its own.

    Returns:
        The job, as the server describes it.

    Raises:
        InvalidInput: `no_adapter_files`, if the folder has no adapter.
        HiloraError: the server refused it.
    """
    headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    parts = await asyncio.to_thread(_parts_of, upload)
    if parts:
        fields: JsonObject = {"replace": str(upload.replaces).lower()}
        if name := upload.name or _folder_name(upload):
            fields["name"] = name
        if upload.squeeze:
            fields["squeeze"] = json.dumps(upload.squeeze)
        with ExitStack() as stack:
            files = _opened(parts, stack, on_bytes or _ignore)
            return await client.upload("/v1/adapters", fields=fields, files=files, headers=headers)
    body: JsonObject = {
        "name": upload.name,
        "source": {_kind_of(upload.source): upload.source},
        "samples": texts_of(upload.samples or b""),
        "replace": upload.replaces,
        "squeeze": upload.squeeze,
    }
    return await client.post("/v1/adapters", body, headers=headers)


async def wait_for_job(client: ApiClient, job: JsonObject, *, on_job: OnJob | None = None) -> JsonObject:
    """Follow an ingest until it is over.

    Returns:
        The finished job.

    Raises:
        HiloraError: it failed; with the reason and the remedy of the job.
        RequestAborted: it was cancelled.
        Unavailable: the server stays away.
    """
    failures = 0
    while job["state"] not in _FINISHED_STATES:
        reason: Unavailable | None = None
        try:
            async for event in client.events(f"/v1/jobs/{job['job_id']}/events"):
                failures = 0
                if event is not None:
                    job = event.data
                    if on_job is not None:
                        on_job(job)
        except Unavailable as error:
            reason = error
        if job["state"] not in _FINISHED_STATES:
            # The server ended the stream, as it does when it restarts: the job goes on without it.
            failures += 1
            if failures > _RECONNECTIONS:
                raise reason or Unavailable("The server does not say how the ingest goes on.")
            await asyncio.sleep(_SECONDS_BEFORE_RECONNECTING)
    if job["state"] == "CANCELLED":
        raise RequestAborted(f"The ingest of {job['adapter_name']} was cancelled.", code="cancelled")
    if job["state"] == "FAILED":
        error = job.get("error") or {}
        raise HiloraError(
            str(error.get("message", job.get("detail", "The ingest failed."))),
            code=error.get("code"),
            remedy=error.get("remedy"),
            place=error.get("place"),
        )
    return job


def _ignore(sent: int, total: int) -> None:
    """Nobody watches."""


def _opened(parts: list[Part], stack: ExitStack, on_bytes: OnBytes) -> list[UploadFile]:
    """The parts as httpx wants them; files are open until the stack is left."""
    total = sum(content.stat().st_size if isinstance(content, Path) else len(content) for _, _, content in parts)
    sent = 0

    def count(num_bytes: int) -> None:
        nonlocal sent
        sent += num_bytes
        on_bytes(sent, total)

    files: list[UploadFile] = []
    for field, name, content in parts:
        if isinstance(content, Path):
            counted = _CountedFile(stack.enter_context(content.open("rb")), count)
            files.append((field, (name, cast("BinaryIO", counted))))
        else:
            count(len(content))
            files.append((field, (name, content)))
    return files


def _parts_of(upload: AdapterUpload) -> list[Part]:
    """What to send as form files; nothing if the source is neither a folder nor a file, but a reference."""
    path = Path(upload.source)
    if path.is_dir():
        return _folder_parts(path, upload.samples)
    if not path.is_file():
        return []
    parts: list[Part] = [("archive", path.name, path)]
    if upload.samples is not None:
        parts.append(("samples", SAMPLES, upload.samples))
    return parts


def _folder_name(upload: AdapterUpload) -> str | None:
    """A folder names its adapter; an archive's name is the server's to find inside."""
    path = Path(upload.source)
    return path.absolute().name if path.is_dir() else None


def _folder_parts(folder: Path, samples: bytes | None) -> list[Part]:
    weights = [folder / ADAPTER_WEIGHTS]
    shards = sorted(folder.glob(WEIGHT_SHARDS))
    if shards and not weights[0].is_file():
        # One file of weights wins over shards, as in PEFT.
        weights = [folder / WEIGHTS_INDEX, *shards]
    parts: list[Part] = []
    for file in (folder / ADAPTER_CONFIG, *weights):
        if not file.is_file():
            raise InvalidInput(
                f"{folder} has no {file.name}.",
                code="no_adapter_files",
                remedy="Give a folder that PEFT's save_pretrained wrote.",
                place=str(folder),
            )
        parts.append(("files", file.name, file))
    if (folder / CARD).is_file():
        parts.append(("files", CARD, folder / CARD))
    if samples is not None:
        parts.append(("samples", SAMPLES, samples))
    elif (folder / SAMPLES).is_file():
        parts.append(("samples", SAMPLES, folder / SAMPLES))
    return parts


def _kind_of(reference: str) -> str:
    """The field of a source reference that is not a file here."""
    scheme, separator, _ = reference.partition("://")
    if not separator:
        return "hub"
    return "url" if scheme.lower() in {"http", "https"} else "object"


def texts_of(samples: bytes) -> list[str]:
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
