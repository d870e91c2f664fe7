"""Brings the files of a referenced adapter into its staging folder, and says meanwhile how far it is."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from pathlib import Path

from services.registry.adapter_files import SAMPLES_FILE, is_adapter_file
from services.registry.job import IngestRequest, SourceKind
from services.registry.ports import AdapterSource, FolderAssembler
from services.registry.running_job import RunningJob

_OWN_SAMPLES_FILE = ".own-samples.jsonl"
_MEBIBYTE = 1024 * 1024


class FetchProgress:
    """A `ProgressListener` that passes on to a job what the thread that fetches says.

    Args:
        running: the job; called off or abandoned, it ends the fetch at its next piece.
    """

    def __init__(self, running: RunningJob) -> None:
        self._running = running

    def __call__(self, done_bytes: int, total_bytes: int | None) -> None:
        """See `ProgressListener`."""
        # A size that is not known is not made up.
        share = done_bytes / total_bytes if total_bytes else 0.0
        of_all = f" of {total_bytes / _MEBIBYTE:.1f}" if total_bytes else ""
        self._running.report(share, f"fetching the files: {done_bytes / _MEBIBYTE:.1f}{of_all} MiB")


class Fetcher:
    """The first step of an ingest.

    Args:
        sources: what can be read besides uploads.
        assemble: makes of the files that came in those that are checked.
    """

    def __init__(self, *, sources: Mapping[SourceKind, AdapterSource], assemble: FolderAssembler) -> None:
        self._sources = sources
        self._assemble = assemble

    async def fetch(self, running: RunningJob, request: IngestRequest, folder: Path) -> str:
        """Bring the files in beside the request; sample texts of the client stay. Uploads lie there already.

        Args:
            running: the FETCHING job; told about the progress. A thread cannot be cancelled: whoever stops waiting
                abandons the job, or the fetch would write on while another process repeats it.
            request: what to fetch.
            folder: the staging folder.

        Returns:
            Where the files came from, exactly, as provenance keeps it.

        Raises:
            RequestAborted: the job was called off.
            HiloraError: see `AdapterSource.fetch` and `FolderAssembler`.
        """
        if request.source_kind is SourceKind.UPLOAD:
            return request.source
        return await asyncio.to_thread(self._bring, request, folder, FetchProgress(running))

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
