"""Brings the files of a referenced adapter into its staging folder, and says meanwhile how far it is."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from hilora.errors import Unavailable
from services.registry.adapter_files import SAMPLES_FILE, is_adapter_file
from services.registry.job import IngestJob, IngestRequest, SourceKind
from services.registry.ports import AdapterSource, FolderAssembler, JobStore

_OWN_SAMPLES_FILE = ".own-samples.jsonl"
_MEBIBYTE = 1024 * 1024


class FetchProgress:
    """A `ProgressListener`: written by the thread that fetches, read and stopped by the event loop."""

    def __init__(self) -> None:
        self._done_bytes = 0
        self._total_bytes: int | None = None
        self._is_stopped = False

    def __call__(self, done_bytes: int, total_bytes: int | None) -> None:
        """See `ProgressListener`."""
        if self._is_stopped:
            raise Unavailable(
                "The fetch was stopped.", code="fetch_stopped", remedy="Nothing needs to be done: it will be repeated."
            )
        self._done_bytes, self._total_bytes = done_bytes, total_bytes

    def stop(self) -> None:
        """Have the fetch end at its next piece: nobody waits for its result any more."""
        self._is_stopped = True

    @property
    def share(self) -> float:
        """How much of the fetch is done, 0 to 1; 0 as long as its size is not known."""
        return self._done_bytes / self._total_bytes if self._total_bytes else 0.0

    def __str__(self) -> str:
        if not self._done_bytes:
            return "fetching the files"
        total = f" of {self._total_bytes / _MEBIBYTE:.1f}" if self._total_bytes else ""
        return f"fetching the files: {self._done_bytes / _MEBIBYTE:.1f}{total} MiB"


class Fetcher:
    """The first step of an ingest.

    Args:
        sources: what can be read besides uploads.
        jobs: where the progress is shown.
        assemble: makes of the files that came in those that are checked.
        report_seconds: time between two notes of the progress.
    """

    def __init__(
        self,
        *,
        sources: Mapping[SourceKind, AdapterSource],
        jobs: JobStore,
        assemble: FolderAssembler,
        report_seconds: float = 1.0,
    ) -> None:
        self._sources = sources
        self._jobs = jobs
        self._assemble = assemble
        self._report_seconds = report_seconds

    async def fetch(self, job: IngestJob, request: IngestRequest, folder: Path) -> str:
        """Bring the files in beside the request; sample texts of the client stay. Uploads lie there already.

        Args:
            job: the FETCHING job; its store is told about the progress.
            request: what to fetch.
            folder: the staging folder.

        Returns:
            Where the files came from, exactly, as provenance keeps it.

        Raises:
            HiloraError: see `AdapterSource.fetch` and `FolderAssembler`.
        """
        if request.source_kind is SourceKind.UPLOAD:
            return request.source
        progress = FetchProgress()
        work = asyncio.create_task(asyncio.to_thread(self._bring, request, folder, progress))
        shown = str(progress)
        try:
            while not (await asyncio.wait({work}, timeout=self._report_seconds))[0]:
                if str(progress) == shown:
                    continue
                shown = str(progress)
                with contextlib.suppress(Unavailable):  # a note that is lost costs nothing
                    await self._jobs.put(job.advanced(progress.share, detail=shown))
            return await work
        finally:
            # A thread cannot be cancelled: left alone it would write on while another process repeats the fetch.
            progress.stop()
            work.cancel()

    def _bring(self, request: IngestRequest, folder: Path, progress: FetchProgress) -> str:
        samples, kept = folder / SAMPLES_FILE, folder / _OWN_SAMPLES_FILE
        if request.has_own_samples and not kept.exists():
            # Aside under a name no source writes, in one step: whenever this is killed, the next attempt finds them.
            samples.rename(kept)
        for file in folder.iterdir():
            # An earlier attempt may have brought another version, of which nothing may stay.
            if is_adapter_file(file.name):
                file.unlink()
        source = self._sources[request.source_kind].fetch(request.source, folder, on_progress=progress)
        self._assemble(folder)
        if request.has_own_samples:
            shutil.copyfile(kept, samples)
        return source
