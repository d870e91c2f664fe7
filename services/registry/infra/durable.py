"""Files that are still there after a power cut: written aside, flushed, renamed."""

from __future__ import annotations

import os
from pathlib import Path


def flush_file(path: Path) -> None:
    """Force a file's content, or a folder's list of names, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and force its content onto the disk; its name is durable after `flush_file(path.parent)`."""
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def replace_durably(path: Path, data: bytes) -> None:
    """Replace a file in one step: readers see the old content or the new, also after a crash."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    write_durably(aside, data)
    aside.replace(path)
    flush_file(path.parent)
