"""The registry's folder as one tar file, taken while the registry runs, and a folder made of such a file again.

    backup.json             first: what it is
    incoming/<job_id>/...   accepted uploads that are not ingested yet
    adapters/*.json         the records of names, and of the catalogue as a whole
    artifacts/<revision>/.., profiles/<revision>/<profile_id>/..    the content that these records mention
    audit/*.jsonl           who changed what
    format.json             layout of the folder
    SHA256SUMS              last: digests of all before; a file without it was cut short

The order makes it consistent without a lock. Content is written once and before the record that mentions it, and stays
for a time of grace after; an upload that is ingested in between is in both places, and the second ingest finds it done.
Redis is not part of it: the catalogue is rebuilt from the records.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from hilora.errors import Conflict, InvalidInput
from services.common.log import get_logger
from services.registry.artifact import FORMAT_VERSION
from services.registry.infra.records import REGISTRATION
from services.registry.registration import Registration, VersionState

_log = get_logger(__name__)

DESCRIPTION_FILE = "backup.json"
SUMS_FILE = "SHA256SUMS"
FORMAT_FILE = "format.json"
CATALOG_FILE = ".catalog.json"
REQUEST_FILE = "request.json"
BACKUP_VERSION = 1
FOLDERS = ("incoming", "adapters", "artifacts", "profiles", "audit")
"""Everything else beside them can be made again: caches, Redis' file, logs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BackupSummary:
    """What a backup holds."""

    created_at: float
    """Unix seconds."""
    num_names: int
    num_versions: int
    """Adapter versions whose files are in it."""
    num_uploads: int
    """Accepted uploads that were not ingested yet."""
    num_bytes: int
    """Of all files together."""


def write_backup(data_dir: Path, stream: IO[bytes]) -> BackupSummary:
    """Write a backup of a registry's folder; the registry may run meanwhile.

    Args:
        data_dir: the folder, as `HILORA_REGISTRY_DATA_DIR` names it.
        stream: takes the tar file; need not be seekable.

    Raises:
        InvalidInput: `not_a_store`, or `unsupported_store_format` for a folder of another version.
        Conflict: `backup_incomplete`, if content that a record mentions is not there.
        OSError: a file cannot be read, or the stream not be written.
    """
    _check_format(data_dir)
    created_at = time.time()
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        writer = _Writer(tar)
        writer.add_bytes(DESCRIPTION_FILE, json.dumps(_description(created_at)).encode())
        num_uploads = _add_uploads(writer, data_dir)
        registrations = _add_records(writer, data_dir)
        revisions, profiles = _references(registrations)
        for folder in sorted(
            [f"artifacts/{revision}" for revision in revisions] + [f"profiles/{key}" for key in profiles]
        ):
            _add_content(writer, data_dir, folder)
        for file in sorted((data_dir / "audit").glob("*.jsonl")):
            writer.add_file_if_there(f"audit/{file.name}", file)
        writer.add_bytes(FORMAT_FILE, (data_dir / FORMAT_FILE).read_bytes())
        writer.add_sums()
    return BackupSummary(
        created_at=created_at,
        num_names=len(registrations),
        num_versions=len(revisions),
        num_uploads=num_uploads,
        num_bytes=writer.num_bytes,
    )


def summary_json(summary: BackupSummary) -> str:
    """The summary for programs."""
    return json.dumps(asdict(summary))


class _Writer:
    """A tar file whose members are counted and digested while they are written."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._sums: dict[str, str] = {}
        self.num_bytes = 0

    def add_bytes(self, name: str, data: bytes) -> None:
        self._add(name, io.BytesIO(data), len(data))

    def add_file_if_there(self, name: str, file: Path) -> bool:
        """Add as many bytes as a file has now; whether it was there."""
        try:
            stream = file.open("rb")
        except FileNotFoundError:
            return False
        with stream:
            self._add(name, stream, os.fstat(stream.fileno()).st_size)
        return True

    def add_sums(self) -> None:
        lines = "".join(f"{digest}  {name}\n" for name, digest in self._sums.items())
        self._add(SUMS_FILE, io.BytesIO(lines.encode()), len(lines.encode()))

    def _add(self, name: str, stream: IO[bytes], size: int) -> None:
        member = tarfile.TarInfo(name)
        member.size = size
        member.mtime = int(time.time())
        member.mode = 0o640
        digesting = _Digesting(stream)
        self._tar.addfile(member, digesting)
        self._sums[name] = digesting.digest.hexdigest()
        self.num_bytes += size


class _Digesting(io.RawIOBase):
    """Passes a stream on and digests what passes."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__()
        self._stream = stream
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.digest.update(data)
        return data


def _description(created_at: float) -> dict[str, object]:
    return {"backup_version": BACKUP_VERSION, "format_version": FORMAT_VERSION, "created_at": created_at}


def _check_format(data_dir: Path) -> None:
    try:
        version = json.loads((data_dir / FORMAT_FILE).read_bytes())["format_version"]
    except FileNotFoundError as error:
        raise InvalidInput(
            f"{data_dir} is not the folder of a registry of this version: it has no {FORMAT_FILE}.",
            code="not_a_store",
            remedy="Give the folder that HILORA_REGISTRY_DATA_DIR names; start the registry once on one that is older.",
            place=str(data_dir),
        ) from error
    if version != FORMAT_VERSION:
        raise unsupported_format(str(data_dir), version)


def unsupported_format(what: str, version: object) -> InvalidInput:
    """The refusal of a folder or a backup of another version."""
    return InvalidInput(
        f"{what} has format {version}; this version reads {FORMAT_VERSION}.",
        code="unsupported_store_format",
        remedy="Use the version that wrote it, or a newer one.",
        place=what,
    )


def _add_uploads(writer: _Writer, data_dir: Path) -> int:
    """Accepted uploads. One whose request is gone at the end was ingested meanwhile: it is among the records then."""
    num_uploads = 0
    for request in sorted((data_dir / "incoming").glob(f"[!.]*/{REQUEST_FILE}")):
        folder = request.parent
        for file in _files_of(folder):
            if file.name != REQUEST_FILE:
                writer.add_file_if_there(f"incoming/{folder.name}/{file.relative_to(folder)}", file)
        num_uploads += writer.add_file_if_there(f"incoming/{folder.name}/{REQUEST_FILE}", request)
    return num_uploads


def _add_records(writer: _Writer, data_dir: Path) -> list[Registration]:
    """All records as they are, and those that can be read as values."""
    registrations: list[Registration] = []
    for file in sorted((data_dir / "adapters").glob("*.json")):
        # Records are replaced, never written into and never deleted: one read is one state.
        data = file.read_bytes()
        if file.name.startswith("."):
            if file.name == CATALOG_FILE:
                writer.add_bytes(f"adapters/{file.name}", data)
            continue
        writer.add_bytes(f"adapters/{file.name}", data)
        try:
            registrations.append(REGISTRATION.validate_json(data))
        except ValueError as error:
            _log.error("registration_unreadable", file=file.name, reason=str(error))
    return registrations


def _references(registrations: list[Registration]) -> tuple[set[str], set[str]]:
    """Revisions, and `revision/profile_id`, that the records mention."""
    kept = [
        version for item in registrations for version in item.versions if version.state is not VersionState.COLLECTED
    ]
    profiles = {f"{version.revision}/{profile_id}" for version in kept for profile_id in version.profile_ids.values()}
    return {version.revision for version in kept}, profiles


def _add_content(writer: _Writer, data_dir: Path, folder: str) -> None:
    files = list(_files_of(data_dir / folder))
    if not files or not all(
        writer.add_file_if_there(f"{folder}/{file.relative_to(data_dir / folder)}", file) for file in files
    ):
        raise Conflict(
            f"A record mentions {folder}, which is not there.",
            code="backup_incomplete",
            remedy="If the adapter was collected this very moment, try again; else the store is damaged.",
            place=folder,
        )


def _files_of(folder: Path) -> Iterator[Path]:
    """Files below a folder; none if it is gone."""
    return (file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.startswith("."))
