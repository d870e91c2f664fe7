"""Accepted adapters until they are ingested.

    incoming/<job_id>/adapter_config.json, adapter_model.safetensors, samples.jsonl    as far as there are any
                      request.json       written last when a job is accepted
    incoming/.done-<job_id>/             done: renamed in one step, then removed

So a folder without `request.json` belongs to an upload that is still running or to nobody, and a job that is done has
no folder of its name, whenever its process was killed.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Collection
from pathlib import Path

from services.common.log import get_logger
from services.registry.infra.durable import flush_file, write_durably
from services.registry.infra.records import INGEST_REQUEST
from services.registry.job import IngestRequest, is_job_id

_log = get_logger(__name__)

_REQUEST_FILE = "request.json"
_DONE_PREFIX = ".done-"
_ABANDONED_AFTER_SECONDS = 3600.0


class DiskStagingArea:
    """See `StagingArea`.

    Args:
        root: the folder of all jobs; created if missing.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    def create(self, job_id: str) -> Path:
        """See `StagingArea.create`."""
        folder = self.files(job_id)
        folder.mkdir()
        return folder

    def accept(self, request: IngestRequest) -> None:
        """See `StagingArea.accept`."""
        folder = self.files(request.job_id)
        for file in folder.iterdir():
            flush_file(file)
        aside = folder / f".{_REQUEST_FILE}"
        write_durably(aside, INGEST_REQUEST.dump_json(request))
        aside.rename(folder / _REQUEST_FILE)
        flush_file(folder)
        flush_file(self._root)

    def request(self, job_id: str) -> IngestRequest | None:
        """See `StagingArea.request`."""
        try:
            return INGEST_REQUEST.validate_json((self.files(job_id) / _REQUEST_FILE).read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            _log.error("request_unreadable", job_id=job_id, reason=str(error))
            return None

    def files(self, job_id: str) -> Path:
        """See `StagingArea.files`."""
        if not is_job_id(job_id):
            raise ValueError(f"{job_id!r} is not a job's identity")
        return self._root / job_id

    def accepted(self, *, besides: Collection[str] = ()) -> list[IngestRequest]:
        """See `StagingArea.accepted`."""
        job_ids = (folder.name for folder in self._root.iterdir() if is_job_id(folder.name))
        found = (self.request(job_id) for job_id in job_ids if job_id not in besides)
        return sorted((request for request in found if request), key=lambda request: request.created_at)

    def discard(self, job_id: str) -> None:
        """See `StagingArea.discard`."""
        aside = self._root / f"{_DONE_PREFIX}{job_id}"
        with contextlib.suppress(FileNotFoundError):  # nothing left of it, or another process was quicker
            self.files(job_id).rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def sweep(self) -> None:
        """See `StagingArea.sweep`."""
        for folder in self._root.iterdir():
            if folder.name.startswith(_DONE_PREFIX):
                shutil.rmtree(folder, ignore_errors=True)
                continue
            with contextlib.suppress(FileNotFoundError):  # discarded by its own job meanwhile
                is_old = time.time() - folder.stat().st_mtime > _ABANDONED_AFTER_SECONDS
                if is_old and not (folder / _REQUEST_FILE).exists():
                    shutil.rmtree(folder)
