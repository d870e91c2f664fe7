"""Streams a multipart upload to disk: nothing is held in memory, and everything is counted.

Files become `<field>`-dependent names of ours inside the job's folder; a file name of the client is only compared with
the names an adapter may have, and never becomes a path.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from hilora.compression import Squeeze
from hilora.errors import InvalidInput
from services.registry.adapter_files import ARCHIVE_SUFFIXES, is_wanted
from services.registry.entrypoints.squeeze_option import parse_squeeze
from services.registry.intake import ReceivedUpload

_BUFFER_BYTES = 1024 * 1024
_MAX_PARTS = 32
_MAX_FIELD_BYTES = 4096
_ARCHIVE_FILE = ".archive"
_SAMPLES_FILE = ".samples"
_TEXT_FIELDS = frozenset({"name", "replace", "squeeze"})
_REMEDY = (
    "Send multipart/form-data with `archive`, or with several `files`; besides them `samples`, `name`, `replace` and "
    "`squeeze`."
)


class MultipartUpload:
    """One upload as it arrives; feed it the body, then take the result.

    Args:
        content_type: header of the request.
        job_id: identity of the upload.
        folder: where its files go.
        max_bytes: limit on the whole body.
    """

    def __init__(self, *, content_type: str, job_id: str, folder: Path, max_bytes: int) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise _malformed("the body is not multipart/form-data with a boundary")
        self._job_id = job_id
        self._folder = folder
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._num_parts = 0
        self._is_complete = False
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._sink: BinaryIO | None = None
        self._field: tuple[str, bytearray] | None = None
        self._fields: dict[str, str] = {}
        self._archive_name = ""
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._collect(self._header_name),
                    "on_header_value": self._collect(self._header_value),
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise _malformed(str(error)) from error

    @property
    def adapter_name(self) -> str | None:
        """The field `name`."""
        return self._fields.get("name") or None

    @property
    def is_replacement(self) -> bool:
        """The field `replace`."""
        return self._fields.get("replace", "").lower() in {"1", "true", "yes", "on"}

    @property
    def squeeze(self) -> Squeeze | None:
        """The field `squeeze`. Raises InvalidInput (`invalid_squeeze`)."""
        return parse_squeeze(self._fields.get("squeeze", ""))

    async def receive(self, body: AsyncIterator[bytes]) -> ReceivedUpload:
        """Write the body to disk as it comes.

        Raises:
            InvalidInput: `upload_too_large` or `malformed_upload`.
            InvalidAdapter: a file name that does not belong to an adapter.
        """
        buffer = bytearray()
        try:
            async for chunk in body:
                self._num_bytes += len(chunk)
                if self._num_bytes > self._max_bytes:
                    raise too_large(self._max_bytes)
                buffer += chunk
                if len(buffer) >= _BUFFER_BYTES:
                    await asyncio.to_thread(self._feed, bytes(buffer))
                    buffer.clear()
            await asyncio.to_thread(self._feed, bytes(buffer))
        finally:
            self._close()
        if not self._is_complete:
            raise _malformed("the body ends before its last boundary")
        archive = self._folder / _ARCHIVE_FILE
        samples = self._folder / _SAMPLES_FILE
        return ReceivedUpload(
            job_id=self._job_id,
            folder=self._folder,
            archive=archive if archive.exists() else None,
            archive_name=self._archive_name,
            samples=samples if samples.exists() else None,
        )

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _malformed(str(error)) from error

    def _close(self) -> None:
        if self._sink is not None:
            self._sink.close()
            self._sink = None

    def _on_part_begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > _MAX_PARTS:
            raise _malformed(f"it has more than {_MAX_PARTS} parts")
        self._headers.clear()

    @staticmethod
    def _collect(target: bytearray) -> Callable[[bytes, int, int], None]:
        def collect(data: bytes, start: int, end: int) -> None:
            target.extend(data[start:end])

        return collect

    def _on_header_end(self) -> None:
        self._headers[bytes(self._header_name).lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        field = options.get(b"name", b"").decode("utf-8", "replace")
        file_name = PurePosixPath(options.get(b"filename", b"").decode("utf-8", "replace").replace("\\", "/")).name
        if field in _TEXT_FIELDS:
            self._field = (field, bytearray())
        elif field == "archive" or file_name.lower().endswith(ARCHIVE_SUFFIXES):
            self._archive_name = file_name
            self._sink = self._new_file(_ARCHIVE_FILE)
        elif field == "samples":
            self._sink = self._new_file(_SAMPLES_FILE)
        elif file_name:
            # Whatever a client calls its fields, a file is known by its name.
            self._sink = self._new_file(file_name) if is_wanted(file_name) else None
        else:
            raise _malformed(f"the field {field[:80]!r} is not known here")

    def _new_file(self, name: str) -> BinaryIO:
        try:
            return (self._folder / name).open("xb")
        except FileExistsError as error:
            raise _malformed(f"{name.lstrip('.')} is sent twice") from error

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._sink is not None:
            self._sink.write(data[start:end])
        elif self._field is not None:
            if len(self._field[1]) + end - start > _MAX_FIELD_BYTES:
                raise _malformed(f"the field {self._field[0]!r} is longer than {_MAX_FIELD_BYTES} bytes")
            self._field[1].extend(data[start:end])

    def _on_part_end(self) -> None:
        self._close()
        if self._field is not None:
            self._fields[self._field[0]] = self._field[1].decode("utf-8", "replace").strip()
            self._field = None

    def _on_end(self) -> None:
        self._is_complete = True


def too_large(max_bytes: int) -> InvalidInput:
    """The refusal of a body above the limit."""
    return InvalidInput(
        f"The upload is larger than {max_bytes} bytes.",
        code="upload_too_large",
        remedy="Reduce the rank, or have the operator raise HILORA_REGISTRY_MAX_UPLOAD_BYTES.",
        place="body",
    )


def _malformed(reason: str) -> InvalidInput:
    return InvalidInput(f"The upload is malformed: {reason}.", code="malformed_upload", remedy=_REMEDY, place="body")
