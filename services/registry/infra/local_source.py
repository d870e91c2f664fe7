"""Reads adapters from the registry's own file system, inside the folders that the operator allows."""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from hilora.errors import InvalidInput
from services.registry.adapter_files import (
    CARD_FILE,
    MAX_CARD_BYTES,
    WEIGHTS_FILE,
    archive_stem,
    is_adapter_file,
    is_shard,
    is_wanted,
)
from services.registry.infra.transfer import COPY_BYTES, FetchLimits, Transfer
from services.registry.ports import ArchiveUnpacker, ProgressListener

_ARCHIVE_FILE = ".archive"
_PLACE = "source.path"


class LocalFolderSource:
    """See `AdapterSource`; a reference is the path of a folder or of an archive.

    Args:
        allowed_folders: adapters may lie in these and below; none means that local paths are switched off.
        limits: on the sum of an adapter's files, or on its archive, and on the time.
        unpack: takes files out of an archive.
    """

    def __init__(self, *, allowed_folders: Sequence[Path], limits: FetchLimits, unpack: ArchiveUnpacker) -> None:
        self._allowed = tuple(folder.resolve() for folder in allowed_folders)
        self._limits = limits
        self._unpack = unpack

    def check(self, reference: str) -> None:
        """See `AdapterSource.check`. Raises InvalidInput: `path_not_allowed` or `path_not_found`."""
        self._resolved(reference)

    def fetch(self, reference: str, folder: Path, *, on_progress: ProgressListener) -> str:
        """See `AdapterSource.fetch`; returns the path without links and `..`."""
        origin = self._resolved(reference)
        transfer = Transfer(self._limits, on_progress=on_progress, place=_PLACE)
        if origin.is_dir():
            _copy_folder(origin, folder, transfer)
        else:
            archive = folder / _ARCHIVE_FILE
            try:
                _copy(origin, archive, transfer)
                self._unpack(archive, folder)
            finally:
                archive.unlink(missing_ok=True)
        return str(origin)

    def _resolved(self, reference: str) -> Path:
        # Resolved first: `..` and links are followed before the comparison, not after it.
        path = Path(reference).resolve() if "\0" not in reference else Path("/")
        if not any(path.is_relative_to(folder) for folder in self._allowed):
            raise InvalidInput(
                f"The registry may not read {reference[:200]!r}.",
                code="path_not_allowed",
                remedy="Upload the files, or have the operator add the folder to HILORA_REGISTRY_ALLOWED_LOCAL_DIRS.",
                place=_PLACE,
            )
        if not _is_readable_kind(path):
            raise InvalidInput(
                f"{reference[:200]!r} is neither a folder nor an archive.",
                code="path_not_found",
                remedy="Give the folder that holds adapter_config.json, or a zip, tar, tar.gz or tar.zst file.",
                place=_PLACE,
            )
        return path


def _is_readable_kind(path: Path) -> bool:
    try:
        return path.is_dir() or (path.is_file() and bool(archive_stem(path.name)))
    except OSError:  # a name longer than any, or a folder that is closed to us
        return False


def _copy_folder(origin: Path, folder: Path, transfer: Transfer) -> None:
    names = sorted(entry.name for entry in origin.iterdir())
    wanted = [name for name in names if is_adapter_file(name)]
    if WEIGHTS_FILE in wanted:
        wanted = [name for name in wanted if not is_shard(name)]
    if CARD_FILE in wanted and (origin / CARD_FILE).lstat().st_size > MAX_CARD_BYTES:
        wanted.remove(CARD_FILE)
    transfer.expect(sum((origin / name).lstat().st_size for name in wanted))
    for name in wanted:
        _copy(origin / name, folder / name, transfer)
    if not any(name == WEIGHTS_FILE or is_shard(name) for name in wanted):
        for name in names:
            if Path(name).suffix in {".bin", ".pt", ".pth", ".ckpt"}:
                is_wanted(name)  # says what to do with a pickle


def _copy(origin: Path, target: Path, transfer: Transfer) -> None:
    with _plain_file(origin) as source, target.open("wb") as sink:
        while data := source.read(COPY_BYTES):
            transfer.count(len(data))
            sink.write(data)


@contextmanager
def _plain_file(origin: Path) -> Generator[BinaryIO]:
    """A plain file to read; a link is not followed, so it cannot lead out of the folder."""
    try:
        descriptor = os.open(origin, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise InvalidInput(
            f"{origin.name} cannot be read: {error.strerror}.",
            code="path_not_allowed",
            remedy="Put plain, readable files into the folder; links are not followed.",
            place=origin.name,
        ) from error
    with os.fdopen(descriptor, "rb") as source:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidInput(
                f"{origin.name} is not a plain file.",
                code="path_not_allowed",
                remedy="Put plain files into the folder.",
                place=origin.name,
            )
        yield source
