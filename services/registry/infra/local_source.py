"""Reads adapters from folders of the registry's own file system, inside those the operator allows."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from hilora.errors import InvalidInput
from services.registry.adapter_files import ADAPTER_FILES, WEIGHTS_FILE, is_wanted

_COPY_BYTES = 1024 * 1024


class LocalFolderSource:
    """See `AdapterSource`; a reference is the path of a folder.

    Args:
        allowed_folders: adapters may lie in these and below; none means that local paths are switched off.
        max_bytes: limit on the sum of an adapter's files.
    """

    def __init__(self, *, allowed_folders: Sequence[Path], max_bytes: int) -> None:
        self._allowed = tuple(folder.resolve() for folder in allowed_folders)
        self._max_bytes = max_bytes

    def check(self, reference: str) -> None:
        """See `AdapterSource.check`. Raises InvalidInput: `path_not_allowed` or `path_not_found`."""
        self._resolved(reference)

    def fetch(self, reference: str, folder: Path) -> str:
        """See `AdapterSource.fetch`."""
        origin = self._resolved(reference)
        left = self._max_bytes
        for name in ADAPTER_FILES:
            if (origin / name).exists():
                left -= _copy(origin / name, folder / name, max_bytes=left)
        if not (folder / WEIGHTS_FILE).exists():
            for entry in sorted(origin.iterdir()):
                if entry.suffix in {".bin", ".pt", ".pth", ".ckpt"}:
                    is_wanted(entry.name)  # says what to do with a pickle
        return str(origin)

    def _resolved(self, reference: str) -> Path:
        # Resolved first: `..` and links are followed before the comparison, not after it.
        path = Path(reference).resolve() if "\0" not in reference else Path("/")
        if not any(path.is_relative_to(folder) for folder in self._allowed):
            raise InvalidInput(
                f"The registry may not read {reference[:200]!r}.",
                code="path_not_allowed",
                remedy="Upload the files, or have the operator add the folder to HILORA_REGISTRY_ALLOWED_LOCAL_DIRS.",
                place="source.path",
            )
        if not path.is_dir():
            raise InvalidInput(
                f"{reference[:200]!r} is not a folder.",
                code="path_not_found",
                remedy="Give the folder that holds adapter_config.json.",
                place="source.path",
            )
        return path


def _copy(origin: Path, target: Path, *, max_bytes: int) -> int:
    """Copy one plain file and return its size; a link is not followed, so it cannot lead out of the folder."""
    try:
        descriptor = os.open(origin, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise InvalidInput(
            f"{origin.name} cannot be read: {error.strerror}.",
            code="path_not_allowed",
            remedy="Put plain, readable files into the folder; links are not followed.",
            place=origin.name,
        ) from error
    with os.fdopen(descriptor, "rb") as source, target.open("wb") as sink:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidInput(
                f"{origin.name} is not a plain file.",
                code="path_not_allowed",
                remedy="Put plain files into the folder.",
                place=origin.name,
            )
        copied = 0
        while data := source.read(_COPY_BYTES):
            copied += len(data)
            if copied > max_bytes:
                raise InvalidInput(
                    f"The adapter is larger than the limit at {origin.name}.",
                    code="upload_too_large",
                    remedy="Reduce the rank, or have the operator raise HILORA_REGISTRY_MAX_UPLOAD_BYTES.",
                    place=origin.name,
                )
            sink.write(data)
    return copied
