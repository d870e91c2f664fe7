"""Write-once folders: written aside, forced onto the disk, renamed; set aside again before they are deleted.

    <root>/<key>/...                a complete folder; a key is one or two segments of 64 hex digits
    <root>/.writing-<uuid>/         being written, or left behind by a crash
    <root>/.aside/<key with + for />/  taken out of use, not yet deleted

A folder that bears a key is complete. Content is named by its hash, so that two writers of one key write the same.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from services.registry.infra.durable import flush_file, write_durably

_WRITING_PREFIX = ".writing-"
_ASIDE = ".aside"
_ABANDONED_AFTER_SECONDS = 3600.0
_SEGMENT = re.compile(r"[0-9a-f]{64}")


class WriteOnceFolders:
    """Implements `StoreCleaner` for the folders of one root.

    Args:
        root: created if missing.
        depth: segments of a key.
    """

    def __init__(self, root: Path, *, depth: int) -> None:
        self._root = root
        self._depth = depth
        root.mkdir(parents=True, exist_ok=True)

    def folder(self, key: str) -> Path:
        """Where a key's content is, whether it exists or not.

        Raises:
            ValueError: the text is no key, and must never become a path.
        """
        segments = key.split("/")
        if len(segments) != self._depth or not all(_SEGMENT.fullmatch(segment) for segment in segments):
            raise ValueError(f"{key[:140]!r} is no key")
        return self._root.joinpath(*segments)

    def touch(self, key: str) -> bool:
        """See `StoreCleaner.touch`."""
        try:
            os.utime(self.folder(key))
        except FileNotFoundError:
            return False
        return True

    def write(self, key: str, files: Mapping[str, bytes]) -> None:
        """Store a folder of files, all or nothing; nothing happens if the key is there already."""
        target = self.folder(key)
        writing = self._root / f"{_WRITING_PREFIX}{uuid.uuid4().hex}"
        writing.mkdir()
        for name, data in files.items():
            write_durably(writing / name, data)
        flush_file(writing)
        if not target.parent.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            flush_file(target.parent.parent)
        try:
            writing.rename(target)
        except OSError:
            # Another process stored the same content first; anything else is a fault of the disk.
            if not target.is_dir():
                raise
            shutil.rmtree(writing)
            return
        flush_file(target.parent)

    def sweep(self) -> None:
        """Remove what a crash left half written."""
        for folder in self._root.glob(f"{_WRITING_PREFIX}*"):
            with contextlib.suppress(FileNotFoundError):  # its writer finished between the two steps
                if time.time() - folder.stat().st_mtime > _ABANDONED_AFTER_SECONDS:
                    shutil.rmtree(folder)
        if self._depth > 1:
            self._remove_empty_parents()

    def stored(self) -> list[str]:
        """See `StoreCleaner.stored`."""
        found = self._root.glob("/".join(["[0-9a-f]*"] * self._depth))
        keys = ("/".join(folder.parts[-self._depth :]) for folder in found)
        return sorted(key for key in keys if all(_SEGMENT.fullmatch(segment) for segment in key.split("/")))

    def idle_seconds(self, key: str) -> float:
        """See `StoreCleaner.idle_seconds`."""
        return _age_seconds(self.folder(key))

    def size_bytes(self, key: str) -> int:
        """See `StoreCleaner.size_bytes`."""
        with contextlib.suppress(FileNotFoundError):
            return sum(file.stat().st_size for file in self.folder(key).iterdir())
        return 0

    def set_aside(self, key: str) -> None:
        """See `StoreCleaner.set_aside`."""
        source, target = self.folder(key), self._aside_folder(key)
        target.parent.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if target.is_dir():  # restored content was written anew meanwhile; one copy is enough
                shutil.rmtree(target)
            source.rename(target)
            os.utime(target)
            flush_file(source.parent)

    def aside(self) -> list[str]:
        """See `StoreCleaner.aside`."""
        return sorted(folder.name.replace("+", "/") for folder in (self._root / _ASIDE).glob("*"))

    def aside_seconds(self, key: str) -> float:
        """See `StoreCleaner.aside_seconds`."""
        return _age_seconds(self._aside_folder(key))

    def restore(self, key: str) -> None:
        """See `StoreCleaner.restore`."""
        target = self.folder(key)
        if target.is_dir():  # written anew meanwhile
            shutil.rmtree(self._aside_folder(key), ignore_errors=True)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self._aside_folder(key).rename(target)
            os.utime(target)
            flush_file(target.parent)

    def purge(self, key: str) -> None:
        """See `StoreCleaner.purge`."""
        shutil.rmtree(self._aside_folder(key), ignore_errors=True)
        with contextlib.suppress(OSError):  # other profiles of the same artifact are left
            if self._depth > 1:
                self.folder(key).parent.rmdir()

    def _remove_empty_parents(self) -> None:
        """Of keys that were purged by a process which died right then. A fresh one may be about to be filled."""
        for parent in self._root.glob("[0-9a-f]*"):
            with contextlib.suppress(OSError):  # not empty
                if time.time() - parent.stat().st_mtime > _ABANDONED_AFTER_SECONDS:
                    parent.rmdir()

    def _aside_folder(self, key: str) -> Path:
        self.folder(key)  # refuses what is no key
        return self._root / _ASIDE / key.replace("/", "+")


def _age_seconds(folder: Path) -> float:
    with contextlib.suppress(FileNotFoundError):
        return max(0.0, time.time() - folder.stat().st_mtime)
    return 0.0
