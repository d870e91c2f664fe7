"""`hilora backup` and `hilora restore`: the registry's folder as one file, and a folder made of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated

import typer

STANDARD_STREAM = Path("-")

DataDirOption = Annotated[
    Path | None, typer.Option("--data-dir", file_okay=False, help="The folder of `hilora serve`.", show_default=False)
]
RegistryDirOption = Annotated[
    Path | None,
    typer.Option(
        "--registry-dir",
        envvar="HILORA_REGISTRY_DATA_DIR",
        file_okay=False,
        help="The folder of a registry of its own; --data-dir goes before it.",
        show_default=False,
    ),
]


def backup(
    file: Annotated[Path, typer.Argument(help="The file to write, or - for standard output.", dir_okay=False)],
    data_dir: DataDirOption = None,
    registry_dir: RegistryDirOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
) -> None:
    """Write all adapters, their records, accepted uploads and the audit log into one tar file.

    The system may run meanwhile. Keys, settings and learned gates are not part of it.
    """
    from services.registry.infra.store_backup import summary_json, write_backup

    source = _registry_folder(data_dir, registry_dir)
    with _written(file) as stream:
        summary = write_backup(source, stream)
    # On standard output there is the backup itself.
    told = sys.stderr if file == STANDARD_STREAM else sys.stdout
    if as_json:
        print(summary_json(summary), file=told)
        return
    megabytes = summary.num_bytes / 1e6
    print(
        f"{summary.num_names} names, {summary.num_versions} versions, {summary.num_uploads} waiting uploads, "
        f"{megabytes:.1f} MB: {file}",
        file=told,
    )


def restore(
    file: Annotated[Path, typer.Argument(help="A file that `hilora backup` wrote, or - for standard input.")],
    data_dir: DataDirOption = None,
    registry_dir: RegistryDirOption = None,
) -> None:
    """Make an empty folder one that a registry can start on, of a backup. Nothing may run on it meanwhile."""
    from services.registry.infra.store_restore import restore_backup

    if data_dir is None:
        with _read(file) as stream:
            num_files = restore_backup(stream, _registry_folder(None, registry_dir))
        print(f"{num_files} files restored to {registry_dir}")
        return
    from services.standalone.data_folder import DataFolder

    folder = DataFolder(data_dir)
    # Refuses while a system runs on it.
    folder.acquire()
    try:
        with _read(file) as stream:
            num_files = restore_backup(stream, folder.registry)
    finally:
        folder.release()
    print(f"{num_files} files restored to {folder.registry}")


def _registry_folder(data_dir: Path | None, registry_dir: Path | None) -> Path:
    if data_dir is not None:
        from services.standalone.data_folder import DataFolder

        return DataFolder(data_dir).registry
    if registry_dir is not None:
        return registry_dir
    raise typer.BadParameter("give --data-dir (of `hilora serve`) or --registry-dir (of a registry)")


@contextmanager
def _read(file: Path) -> Generator[IO[bytes]]:
    if file == STANDARD_STREAM:
        yield sys.stdin.buffer
        return
    with file.open("rb") as stream:
        yield stream


@contextmanager
def _written(file: Path) -> Generator[IO[bytes]]:
    """A file that has its name only once it is complete, and that only its owner may read: it holds sample texts."""
    from hilora.errors import Conflict

    if file == STANDARD_STREAM:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if file.exists():
        raise Conflict(f"{file} is there already.", code="backup_exists", remedy="Give another name.", place=str(file))
    aside = file.with_name(f".{file.name}.{os.getpid()}.part")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)
