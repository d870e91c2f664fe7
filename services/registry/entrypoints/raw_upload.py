"""Streams an upload whose body is the archive itself to disk: nothing is held in memory, and everything is counted.

For large adapters: `curl -T adapter.tar.zst -H 'Content-Type: application/zstd' '.../v1/adapters?name=sorter'`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from hilora.compression import Squeeze
from hilora.errors import InvalidInput
from services.registry.entrypoints.multipart import too_large
from services.registry.intake import ReceivedUpload

RAW_CONTENT_TYPES = frozenset(
    {
        "application/zip",
        "application/gzip",
        "application/zstd",
        "application/x-tar",
        "application/octet-stream",
    }
)
"""Types of a body that is an archive; which kind it is, its content says."""

_BUFFER_BYTES = 1024 * 1024
_ARCHIVE_FILE = ".archive"


class RawUpload:
    """One upload as it arrives; its name and options are in the query.

    Args:
        adapter_name: query parameter `name`; the folder inside the archive names the adapter if it is missing.
        squeeze: query parameter `squeeze`, read.
        job_id: identity of the upload.
        folder: where its file goes.
        max_bytes: limit on the body.
    """

    is_replacement = False
    """The query says so, for every kind of upload."""

    def __init__(
        self, *, adapter_name: str | None, squeeze: Squeeze | None, job_id: str, folder: Path, max_bytes: int
    ) -> None:
        self.adapter_name = adapter_name
        self.squeeze = squeeze
        self._job_id = job_id
        self._folder = folder
        self._max_bytes = max_bytes

    async def receive(self, body: AsyncIterator[bytes]) -> ReceivedUpload:
        """Write the body to disk as it comes.

        Raises:
            InvalidInput: `upload_too_large`, or `malformed_upload` if it is empty.
        """
        archive = self._folder / _ARCHIVE_FILE
        num_bytes = 0
        buffer = bytearray()
        with archive.open("xb") as sink:
            async for chunk in body:
                num_bytes += len(chunk)
                if num_bytes > self._max_bytes:
                    raise too_large(self._max_bytes)
                buffer += chunk
                if len(buffer) >= _BUFFER_BYTES:
                    await asyncio.to_thread(sink.write, bytes(buffer))
                    buffer.clear()
            await asyncio.to_thread(sink.write, bytes(buffer))
        if not num_bytes:
            raise InvalidInput(
                "The body is empty.",
                code="malformed_upload",
                remedy="Send a zip, tar, tar.gz or tar.zst file as the body.",
                place="body",
            )
        return ReceivedUpload(job_id=self._job_id, folder=self._folder, archive=archive, archive_name="", samples=None)
