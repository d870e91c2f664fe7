"""Brings one file of the hub to disk, and goes on where a killed process ended.

    <cache>/<key>.incomplete     what has arrived of a file; the key is a digest of its content's own digest

The client library gives every download a name of its own, so that nothing is left of one that was killed. Here the
name follows from the content: whoever fetches the same content next, for whatever job, goes on with it. Nothing is
taken for complete before its digest is the one that the hub stated.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hilora.errors import Unavailable
from services.registry.infra.transfer import COPY_BYTES, Transfer

_KEPT_SECONDS = 24 * 3600.0
_READ_SECONDS = 30.0
_CONNECT_ATTEMPTS_PAUSE_SECONDS = 1.0
_ATTEMPTS_WITHOUT_A_BYTE = 3
_SUFFIX = ".incomplete"


@dataclass(frozen=True, kw_only=True, slots=True)
class HubFile:
    """One file at one commit."""

    repo: str
    commit: str
    name: str
    size: int
    sha256: str | None
    """Of a large file."""
    blob_id: str | None
    """git's object id, of a small one."""
    repo_type: str = "model"
    """`model` or `dataset`."""

    @property
    def key(self) -> str:
        """Equal for equal content, as far as the hub says what the content is."""
        content = self.sha256 or self.blob_id or f"{self.repo_type}/{self.repo}/{self.commit}/{self.name}"
        return hashlib.sha256(f"{content}/{self.size}".encode()).hexdigest()[:40]

    def is_content(self, stream: IO[bytes]) -> bool:
        """Whether a stream holds, from its beginning, what the hub says the file is."""
        if os.fstat(stream.fileno()).st_size != self.size:
            return False
        if self.sha256:
            digest, expected = hashlib.sha256(), self.sha256
        elif self.blob_id:
            digest = hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)
            expected = self.blob_id
        else:
            return True  # an endpoint that states no digests: the size is all there is
        stream.seek(0)
        while data := stream.read(COPY_BYTES):
            digest.update(data)
        return digest.hexdigest() == expected


class HubDownloader:
    """Downloads through the client library's own session: its endpoint, proxies, certificates and offline switch.

    Args:
        cache: folder of unfinished downloads; created if missing.
        token: credential; `None` leaves it to the library (HF_TOKEN, or its token file).
    """

    def __init__(self, cache: Path, *, token: str | None) -> None:
        self._cache = cache
        self._token = token

    def download(self, file: HubFile, target: Path, transfer: Transfer) -> None:
        """Write a file.

        Args:
            file: what to bring.
            target: where it is to lie; replaced.
            transfer: counts; bytes that are here already are counted, too.

        Raises:
            InvalidInput: the limits of the transfer.
            Unavailable: `hub_content_mismatch`, or `hub_busy` if another process fetches the same content now.
            Exception: whatever the library raises; see `hub_errors`.
        """
        if self._copied_from_library_cache(file, target, transfer):
            return
        self._cache.mkdir(parents=True, exist_ok=True)
        self._sweep()
        with self._own(file) as (path, sink):
            sink.seek(0, os.SEEK_END)
            if sink.tell() > file.size:
                sink.truncate(0)
            transfer.count(sink.tell())
            self._fill(file, sink, transfer)
            sink.flush()
            if not file.is_content(sink):
                path.unlink()
                raise Unavailable(
                    f"{file.name} of {file.repo} arrived damaged.",
                    code="hub_content_mismatch",
                    remedy="It is fetched again from its beginning.",
                    place="source.hub",
                )
            shutil.move(path, target)

    @contextmanager
    def _own(self, file: HubFile) -> Generator[tuple[Path, IO[bytes]]]:
        """The unfinished file, for one process at a time."""
        path = self._cache / f"{file.key}{_SUFFIX}"
        with path.open("ab+") as sink:
            try:
                fcntl.flock(sink, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Another process may have finished it and moved it away between opening and locking.
                is_ours = path.stat().st_ino == os.fstat(sink.fileno()).st_ino
            except (BlockingIOError, FileNotFoundError):
                is_ours = False
            if not is_ours:
                raise Unavailable(
                    f"Another ingest fetches {file.name} of {file.repo} now.",
                    code="hub_busy",
                    remedy="It is tried again.",
                    place="source.hub",
                )
            yield path, sink

    def _fill(self, file: HubFile, sink: IO[bytes], transfer: Transfer) -> None:
        """Append until the file is complete; a connection that broke is opened again as long as bytes arrive."""
        attempts = _ATTEMPTS_WITHOUT_A_BYTE
        while sink.tell() < file.size:
            before = sink.tell()
            failure: Exception | None = None
            try:
                self._append(file, sink, transfer)
            except Exception as error:
                if not _is_broken_connection(error):
                    raise
                failure = error
            if sink.tell() > before:
                attempts = _ATTEMPTS_WITHOUT_A_BYTE
                continue
            attempts -= 1
            if attempts == 0:
                raise failure or OSError(f"the answer ends after {before} of {file.size} bytes")
            time.sleep(_CONNECT_ATTEMPTS_PAUSE_SECONDS)

    def _append(self, file: HubFile, sink: IO[bytes], transfer: Transfer) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        start = sink.tell()
        headers = {**build_hf_headers(token=self._token), "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        url = hf_hub_url(file.repo, file.name, repo_type=file.repo_type, revision=file.commit)
        # The session drops the Authorization header by itself when it is led to another host: content is served from
        # elsewhere, by links that carry their own signature.
        with get_session().stream("GET", url, headers=headers, timeout=_READ_SECONDS) as answer:
            if start and answer.status_code in {200, 416}:
                # Ranges are not known there: it comes from the beginning all the same, or (416) with the next attempt.
                sink.truncate(0)
                sink.seek(0)
                transfer.forget(start)
                if answer.status_code == 416:
                    return
            hf_raise_for_status(answer)
            for data in answer.iter_bytes():
                if sink.tell() + len(data) > file.size:
                    raise OSError(f"more than the {file.size} bytes of {file.name} arrive")
                transfer.count(len(data))
                sink.write(data)

    def _copied_from_library_cache(self, file: HubFile, target: Path, transfer: Transfer) -> bool:
        """Use what lies in HF_HUB_CACHE, if it is what the hub says it is."""
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(file.repo, file.name, revision=file.commit, repo_type=file.repo_type)
        if not isinstance(cached, str):
            return False
        with Path(cached).open("rb") as source:
            if not file.is_content(source):
                return False
            source.seek(0)
            with target.open("wb") as sink:
                shutil.copyfileobj(source, sink, COPY_BYTES)
        transfer.count(file.size)
        return True

    def _sweep(self) -> None:
        """Forget downloads that nobody went on with for a day."""
        for path in self._cache.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _KEPT_SECONDS:
                    path.unlink()


def _is_broken_connection(error: Exception) -> bool:
    """Whether a connection failed, in contrast to an answer that refuses."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError | OfflineModeIsEnabled):
        return False
    return any(base.__name__ == "TransportError" for base in type(error).__mro__)
