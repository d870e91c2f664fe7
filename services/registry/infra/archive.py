"""Unpacks an archive from a stranger without trusting anything it says about itself.

Only the adapter's own files are written, under names of ours, straight into one flat folder: a path inside the archive
decides nothing but which file is meant. All limits are counted on bytes that were really produced.
"""

from __future__ import annotations

import errno
import gzip
import io
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Self

import zstandard

from hilora.errors import UnsafeArchive
from services.registry.adapter_files import CARD_FILE, is_wanted

_COPY_BYTES = 1024 * 1024
# An archive this small cannot hurt whatever its ratio; adapters hold many zeros before training and compress well.
_RATIO_MATTERS_ABOVE_BYTES = 16 * 1024 * 1024
# Between two members a tar stream holds a header of 512 bytes, with long names or attributes a few KB more. Each of
# those is searched in quadratic time (CVE-2024-6232), and read by one more level of recursion.
_MAX_TAR_HEADER_BYTES = 32 * 1024
_MAX_TAR_EXTENSION_BYTES = 4096
_TAR_EXTENSIONS = frozenset(
    {
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    }
)
_ZIP_MAGIC = b"PK\x03\x04"
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZIP_END_MAGIC = b"PK\x05\x06"
_ZIP_END_BYTES = 22
_ZIP_COMMENT_BYTES = 65535
_ZIP64_LOCATOR_MAGIC = b"PK\x06\x07"
_ZIP64_LOCATOR_BYTES = 20
# A list of contents is read as a whole, into objects much larger than its lines; an adapter's has under 10 KB.
_MAX_ZIP_DIRECTORY_BYTES = 1024 * 1024
# Decompressing takes as much memory as a frame's header asks for. `zstd -19` asks for 8 MiB, `--ultra --long` for GiB.
_MAX_ZSTD_WINDOW_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchiveLimits:
    """What an archive may unpack to."""

    max_members: int
    max_unpacked_bytes: int
    max_ratio: float
    """Unpacked over packed size."""


class _Budget:
    """Counts what unpacking produces and stops it at the limits."""

    def __init__(self, limits: ArchiveLimits, packed_bytes: int) -> None:
        self._limits = limits
        self._packed_bytes = max(1, packed_bytes)
        self.num_members = 0
        self.num_bytes = 0

    def count_member(self) -> None:
        self.num_members += 1
        if self.num_members > self._limits.max_members:
            raise _refusal(f"it has more than {self._limits.max_members} members", "too_many_members")

    def count_bytes(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        if self.num_bytes > self._limits.max_unpacked_bytes:
            raise _refusal(f"it unpacks to more than {self._limits.max_unpacked_bytes} bytes", "archive_too_large")
        is_large = self.num_bytes > _RATIO_MATTERS_ABOVE_BYTES
        if is_large and self.num_bytes > self._limits.max_ratio * self._packed_bytes:
            raise _refusal(f"it unpacks to more than {self._limits.max_ratio:g} times its size", "zip_bomb")


class _CountingReader(io.RawIOBase):
    """The decompressed stream of a tar archive, counted, with a second limit up to the next member."""

    def __init__(self, stream: IO[bytes], budget: _Budget) -> None:
        self._stream = stream
        self._budget = budget
        self._member_limit = _MAX_TAR_HEADER_BYTES

    def expect_at_most(self, num_bytes: int) -> None:
        """Allow this many bytes until the next member begins; its header would otherwise be read into memory."""
        self._member_limit = self._budget.num_bytes + num_bytes + _MAX_TAR_HEADER_BYTES

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._budget.count_bytes(len(data))
        if self._budget.num_bytes > self._member_limit:
            raise _oversized_header()
        return data


class _BoundedTarInfo(tarfile.TarInfo):
    """A member's header; the blocks that extend it are refused before they are read where no honest one is as long."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type in _TAR_EXTENSIONS and header.size > _MAX_TAR_EXTENSION_BYTES:
            raise _oversized_header()
        return header


def unpack(archive: Path, folder: Path, limits: ArchiveLimits) -> str | None:
    """Write the adapter's files of an archive into a folder.

    Args:
        archive: zip, tar, tar.gz or tar.zst; recognised by its content.
        folder: where the files go, directly.
        limits: when to stop.

    Returns:
        The name of the one folder that all files lie in inside the archive, if there is one.

    Raises:
        UnsafeArchive: it leaves its folder, holds links or devices, is encrypted, has a file twice, is a bomb or
            cannot be read.
        InvalidAdapter: it holds a pickle or a file that does not belong to an adapter.
    """
    budget = _Budget(limits, archive.stat().st_size)
    with archive.open("rb") as stream:
        magic = stream.read(4)
        stream.seek(0)
        try:
            if magic == _ZIP_MAGIC:
                return _unpack_zip(stream, folder, budget)
            if magic[:2] == _GZIP_MAGIC:
                with gzip.GzipFile(fileobj=stream) as unzipped:
                    return _unpack_tar(unzipped, folder, budget)  # pyright: ignore[reportArgumentType]  (readable)
            if magic == _ZSTD_MAGIC:
                with zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW_BYTES).stream_reader(
                    stream, read_across_frames=True
                ) as unzipped:
                    return _unpack_tar(unzipped, folder, budget)
            return _unpack_tar(stream, folder, budget)
        except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error) as error:
            raise _unreadable(error) from error
        except zstandard.ZstdError as error:
            raise _unreadable_zstd(error) from error
        except (EOFError, IndexError, NotImplementedError, ValueError, OverflowError, struct.error) as error:
            # What the readers of the standard library let through where a file contradicts itself.
            raise _unreadable(error) from error
        except OSError as error:
            if error.errno != errno.EINVAL:  # a seek to before the beginning; anything else is our disk's
                raise
            raise _unreadable(error) from error


def _unpack_zip(stream: IO[bytes], folder: Path, budget: _Budget) -> str | None:
    parents: set[str] = set()
    _check_zip_directory(stream)
    with zipfile.ZipFile(stream) as archive:
        for member in archive.infolist():
            budget.count_member()
            mode = member.external_attr >> 16
            if stat.S_ISLNK(mode):
                raise _link(member.filename)
            if mode and not member.is_dir() and stat.S_IFMT(mode) not in {0, stat.S_IFREG}:
                raise _special(member.filename)
            # As it stands in the file: zipfile cuts its own copy at the first NUL.
            path = _safe_path(member.orig_filename)
            if member.is_dir() or not _is_wanted(path):
                continue
            if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise _refusal(f"{_short(member.filename)} is packed by a rare method", "unsupported_compression")
            if member.flag_bits & 1:
                raise _refusal(f"{_short(member.filename)} is encrypted", "encrypted_archive")
            with archive.open(member) as source:
                _copy(source, folder / path.name, budget.count_bytes)
            parents.add(str(path.parent))
    return _common_folder(parents)


def _check_zip_directory(stream: IO[bytes]) -> None:
    """Refuse a list of contents that would take memory out of proportion, before it is read."""
    stream.seek(0, io.SEEK_END)
    tail_bytes = min(stream.tell(), _ZIP64_LOCATOR_BYTES + _ZIP_END_BYTES + _ZIP_COMMENT_BYTES)
    stream.seek(-tail_bytes, io.SEEK_END)
    tail = stream.read(tail_bytes)
    # As zipfile looks for it: at the very end, without a comment; failing that, the last one there is.
    end = len(tail) - _ZIP_END_BYTES
    if end < 0 or tail[end : end + 4] != _ZIP_END_MAGIC or tail[-2:] != b"\0\0":
        end = tail.rfind(_ZIP_END_MAGIC)
    if end < 0 or len(tail) < end + _ZIP_END_BYTES:
        raise _refusal("its list of contents is missing", "unreadable_archive")
    if tail[max(0, end - _ZIP64_LOCATOR_BYTES) : end].startswith(_ZIP64_LOCATOR_MAGIC):
        raise _refusal("it is a zip64 file; pack one as large as that as tar.gz", "zip64_archive")
    (directory_bytes,) = struct.unpack_from("<L", tail, end + 12)
    if directory_bytes > _MAX_ZIP_DIRECTORY_BYTES:
        raise _refusal(f"its list of contents has {directory_bytes} bytes", "too_many_members")
    stream.seek(0)


def _unpack_tar(stream: IO[bytes], folder: Path, budget: _Budget) -> str | None:
    parents: set[str] = set()
    counted = _CountingReader(stream, budget)
    # "r|": forward only; the archive cannot make us seek, and nothing is read that is not counted.
    with tarfile.open(fileobj=counted, mode="r|", tarinfo=_BoundedTarInfo) as archive:
        while (member := archive.next()) is not None:
            budget.count_member()
            if member.size < 0:
                raise _refusal(f"{_short(member.name)} has a negative size", "unreadable_archive")
            counted.expect_at_most(member.size)
            if member.issym() or member.islnk():
                raise _link(member.name)
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise _special(member.name)
            path = _safe_path(member.name)
            if member.isdir() or not _is_wanted(path):
                continue
            source = archive.extractfile(member)
            assert source is not None, "a regular file has content"
            _copy(source, folder / path.name, lambda _: None)
            parents.add(str(path.parent))
    return _common_folder(parents)


def _safe_path(name: str) -> PurePosixPath:
    """A member's path, if it stays inside its archive on every operating system."""
    path = PurePosixPath(name.replace("\\", "/"))
    is_drive = len(name) > 1 and name[1] == ":"
    if path.is_absolute() or is_drive or ".." in path.parts or "\0" in name:
        raise UnsafeArchive(
            f"The archive is refused: {_short(name)} points outside of it.",
            code="unsafe_path",
            remedy="Pack the adapter's files without a path: `tar czf adapter.tar.gz -C FOLDER .`",
            place=_short(name),
        )
    return path


def _is_wanted(path: PurePosixPath) -> bool:
    if path.parts and path.parts[0] == "__MACOSX":
        return False
    if len(path.parts) > 2:
        raise _refusal(f"{_short(str(path))} lies deeper than one folder", "nested_archive")
    return is_wanted(path.name)


def _copy(source: IO[bytes], target: Path, count: Callable[[int], None]) -> None:
    try:
        sink = target.open("xb")
    except FileExistsError as error:
        if target.name == CARD_FILE:
            return  # beside the adapter's folder and inside it: the first one is as good
        raise _refusal(f"it holds {target.name} twice", "duplicate_member") from error
    with sink:
        while data := source.read(_COPY_BYTES):
            count(len(data))
            sink.write(data)


def _common_folder(parents: set[str]) -> str | None:
    return parents.pop() if len(parents) == 1 and "." not in parents else None


def _short(name: str) -> str:
    return repr(name[:80])


def _link(name: str) -> UnsafeArchive:
    return _refusal(f"{_short(name)} is a link", "link_in_archive")


def _special(name: str) -> UnsafeArchive:
    return _refusal(f"{_short(name)} is neither a plain file nor a folder", "special_file_in_archive")


def _oversized_header() -> UnsafeArchive:
    return _refusal("a member's header is larger than any honest one", "archive_too_large")


def _unreadable(error: Exception) -> UnsafeArchive:
    return _refusal(f"it is not a readable zip, tar, tar.gz or tar.zst file ({str(error)[:200]})", "unreadable_archive")


def _unreadable_zstd(error: Exception) -> UnsafeArchive:
    if "too much memory" not in str(error):
        return _unreadable(error)
    return UnsafeArchive(
        f"The archive is refused: unpacking it takes more than {_MAX_ZSTD_WINDOW_BYTES} bytes of memory.",
        code="zstd_window_too_large",
        remedy="Pack it with `zstd -19` at most, without --ultra and --long.",
        place="archive",
    )


def _refusal(reason: str, code: str) -> UnsafeArchive:
    return UnsafeArchive(
        f"The archive is refused: {reason}.",
        code=code,
        remedy="Pack adapter_config.json, adapter_model.safetensors and samples.jsonl as plain files, each once.",
        place="archive",
    )
