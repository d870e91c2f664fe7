"""Makes a registry's folder of a backup (`store_backup.py`): all of it or nothing, and only into an empty one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import uuid
from pathlib import Path, PurePosixPath
from typing import IO, Any

from hilora.errors import Conflict, InvalidInput
from services.registry.artifact import FORMAT_VERSION
from services.registry.infra.durable import flush_file
from services.registry.infra.store_backup import (
    BACKUP_VERSION,
    CATALOG_FILE,
    DESCRIPTION_FILE,
    FOLDERS,
    FORMAT_FILE,
    SUMS_FILE,
    unsupported_format,
)

_CHUNK_BYTES = 1024 * 1024
_MAX_SUMS_BYTES = 256 * 1024 * 1024
_RESTORING_PREFIX = ".restoring-"


def restore_backup(stream: IO[bytes], data_dir: Path) -> int:
    """Make a folder of a backup. No registry may use it meanwhile.

    Args:
        stream: the tar file; need not be seekable.
        data_dir: the folder; made if it is not there.

    Returns:
        The number of files.

    Raises:
        Conflict: `store_not_empty`.
        InvalidInput: `invalid_backup`, for a file that is none, was cut short or changed; `unsupported_store_format`.
        OSError: the folder cannot be written.
    """
    _check_empty(data_dir)
    data_dir.mkdir(parents=True, exist_ok=True)
    aside = data_dir / f"{_RESTORING_PREFIX}{uuid.uuid4().hex}"
    aside.mkdir()
    try:
        num_files = _unpack(stream, aside)
        # The format comes last: a folder without it, with content, is what a crash right here leaves behind.
        for name in (*FOLDERS, FORMAT_FILE):
            if (aside / name).exists():
                if (data_dir / name).is_dir():
                    shutil.rmtree(data_dir / name)
                (aside / name).replace(data_dir / name)
        flush_file(data_dir)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return num_files


def _check_empty(data_dir: Path) -> None:
    taken = [name for name in FOLDERS if _has_content(data_dir / name)]
    if taken:
        raise Conflict(
            f"{data_dir} is not empty: it has {', '.join(taken)}.",
            code="store_not_empty",
            remedy="Restore into a fresh folder, and start the registry on that.",
            place=str(data_dir),
        )


def _has_content(path: Path) -> bool:
    # A registry that was only started leaves empty folders, and the locks of its records and its log.
    return path.is_dir() and any(file.name == CATALOG_FILE or file.name[0] != "." for file in path.iterdir())


def _unpack(stream: IO[bytes], target: Path) -> int:
    digests: dict[str, str] = {}
    sums: bytes | None = None
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                if sums is not None:
                    raise _invalid(f"{member.name} comes after {SUMS_FILE}")
                source = tar.extractfile(member) if member.isfile() else None
                if source is None:
                    raise _invalid(f"{member.name} is no file")
                if not digests:
                    digests[member.name] = _check_description(member.name, source.read())
                elif member.name == SUMS_FILE:
                    sums = source.read(_MAX_SUMS_BYTES)
                else:
                    digests[member.name] = _write(source, target / _checked_name(member.name))
    except (tarfile.TarError, EOFError) as error:
        raise _invalid(str(error)) from error
    if sums is None:
        raise _invalid("it was cut short")
    told = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    if sums != told.encode():
        raise _invalid(f"its content is not what {SUMS_FILE} says")
    for folder, _, _ in os.walk(target, topdown=False):
        flush_file(Path(folder))
    return len(digests) - 1


def _check_description(name: str, data: bytes) -> str:
    try:
        description: dict[str, Any] = json.loads(data) if name == DESCRIPTION_FILE else {}
        version, store_version = description["backup_version"], description["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise _invalid(f"it does not begin with {DESCRIPTION_FILE}") from error
    if version != BACKUP_VERSION:
        raise _invalid(f"it is of kind {version}, not {BACKUP_VERSION}")
    if store_version != FORMAT_VERSION:
        raise unsupported_format("The backup", store_version)
    return hashlib.sha256(data).hexdigest()


def _checked_name(name: str) -> PurePosixPath:
    """A name that stays inside the folder and belongs there."""
    path = PurePosixPath(name)
    is_inside = not path.is_absolute() and ".." not in path.parts and "\0" not in name
    if not is_inside or not (name == FORMAT_FILE or (len(path.parts) > 1 and path.parts[0] in FOLDERS)):
        raise _invalid(f"{name[:200]!r} does not belong into a store")
    return path


def _write(source: IO[bytes], file: Path) -> str:
    digest = hashlib.sha256()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("xb") as stream:
        while chunk := source.read(_CHUNK_BYTES):
            digest.update(chunk)
            stream.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())
    return digest.hexdigest()


def _invalid(reason: str) -> InvalidInput:
    return InvalidInput(
        f"The backup cannot be used: {reason}.",
        code="invalid_backup",
        remedy="Take another one; nothing was changed.",
        place="backup",
    )
