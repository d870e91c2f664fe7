"""Accepts adapters: what can be refused is refused while the client waits, the rest becomes a job.

Once `submit` has returned, the files and the request are on disk: the job survives the loss of every process and of
Redis.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hilora.adapter import check_adapter_name
from hilora.compression import Squeeze
from hilora.errors import InvalidInput, Unavailable
from services.common.log import get_logger
from services.registry.adapter_files import SAMPLES_FILE, archive_stem
from services.registry.catalog import Catalog
from services.registry.job import IngestJob, IngestRequest, Origin, SourceKind, new_job_id, pending_job
from services.registry.ports import (
    AdapterSource,
    ArchiveUnpacker,
    FolderAssembler,
    IngestQueue,
    JobStore,
    StagingArea,
)
from services.registry.profiling import read_samples
from services.registry.validation import AdapterValidator

_log = get_logger(__name__)

PENDING_GRACE_SECONDS = 10.0
"""A job that waits longer while the queue is empty has lost its message."""

_ROUTE_NAMES = frozenset({"events"})
"""Names that `/v1/adapters/{name}` could not reach: a route of that path means something else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReceivedUpload:
    """What a client sent, already on disk."""

    job_id: str
    folder: Path
    """The job's staging folder; adapter files that came one by one lie here under their own names."""
    archive: Path | None
    """An archive to be unpacked; lies in the folder, too."""
    archive_name: str
    """What the client called the archive."""
    samples: Path | None
    """A samples file that came on its own; wins over one inside the archive."""


class Intake:
    """The way in.

    Args:
        staging: where accepted files wait.
        jobs: their observable states.
        queue: hands them to the ingest process.
        catalog: to find conflicts early.
        validator: checks the files.
        sources: what can be read besides uploads.
        unpack: takes files out of an archive.
        assemble: makes of the files that came in those that are checked.
        taken_names: names that mean something else to clients: the base model's.
    """

    def __init__(
        self,
        *,
        staging: StagingArea,
        jobs: JobStore,
        queue: IngestQueue,
        catalog: Catalog,
        validator: AdapterValidator,
        sources: Mapping[SourceKind, AdapterSource],
        unpack: ArchiveUnpacker,
        assemble: FolderAssembler,
        taken_names: frozenset[str] = frozenset(),
    ) -> None:
        self._staging = staging
        self._jobs = jobs
        self._queue = queue
        self._catalog = catalog
        self._validator = validator
        self._sources = sources
        self._unpack = unpack
        self._assemble = assemble
        self._taken_names = taken_names

    async def open_folder(self) -> tuple[str, Path]:
        """A fresh job id and the folder that its upload is to be written to."""
        job_id = new_job_id()
        return job_id, await asyncio.to_thread(self._staging.create, job_id)

    async def abandon(self, job_id: str) -> None:
        """Forget an upload that was not submitted."""
        await asyncio.to_thread(self._staging.discard, job_id)

    async def submit_upload(
        self,
        upload: ReceivedUpload,
        *,
        adapter_name: str | None,
        is_replacement: bool,
        how: Squeeze | None = None,
        origin: Origin = Origin(),  # noqa: B008  (a frozen value)
    ) -> IngestJob:
        """Check an upload completely, as far as it is small enough to be read now, and accept it.

        Args:
            upload: what came.
            adapter_name: name to register; the archive's if `None`.
            is_replacement: whether another version of the name may be replaced.
            how: the compression that is asked for.
            origin: who asked.

        Returns:
            Its job; or the unfinished job of an equal submission, and then nothing of this one is kept.

        Raises:
            InvalidAdapter: the files are refused; nothing of them is kept.
            InvalidInput: `invalid_adapter_name`, `name_required`.
            AdapterAlreadyRegistered: the name means other content and may not be replaced.
            RegistryUnavailable: Redis does not answer; nothing is kept.
        """
        try:
            inner_name = await asyncio.to_thread(self._arrange, upload)
            name = self._checked(_name_for(adapter_name, inner_name or _stem(upload.archive_name)))
            await asyncio.to_thread(self._validator.check_upload, upload.folder, how=how)
            digest = await asyncio.to_thread(self._validator.digest, upload.folder, how=how)
            await self._catalog.check_name_is_free(name, source_sha256=digest, is_replacement=is_replacement)
            request = IngestRequest(
                job_id=upload.job_id,
                adapter_name=name,
                source_kind=SourceKind.UPLOAD,
                source=upload.archive_name,
                is_replacement=is_replacement,
                has_own_samples=upload.samples is not None,
                created_at=time.time(),
                squeeze=how,
                origin=origin,
            )
            return await self._accept(request, content=digest)
        except BaseException:
            await self.abandon(upload.job_id)
            raise

    async def submit_reference(
        self,
        reference: str,
        *,
        kind: SourceKind,
        adapter_name: str | None,
        texts: Sequence[str],
        is_replacement: bool,
        how: Squeeze | None = None,
        origin: Origin = Origin(),  # noqa: B008  (a frozen value)
    ) -> IngestJob:
        """Accept an adapter that the registry is to fetch itself.

        Args:
            reference: path, hub repository or URL.
            kind: which of them.
            adapter_name: name to register; the reference's last segment if `None`.
            texts: sample texts; empty means that the source brings its own.
            is_replacement: whether another version of the name may be replaced.
            how: the compression that is asked for.
            origin: who asked.

        Returns:
            As `submit_upload`.

        Raises:
            InvalidInput: the reference or the name is refused.
            InvalidAdapter: `invalid_samples` or the like.
            RegistryUnavailable: Redis does not answer; nothing is kept.
        """
        await asyncio.to_thread(self._sources[kind].check, reference)
        name = self._checked(_name_for(adapter_name, _last_segment(reference, kind)))
        job_id, folder = await self.open_folder()
        try:
            if texts:
                await asyncio.to_thread(_write_samples, folder / SAMPLES_FILE, texts)
            request = IngestRequest(
                job_id=job_id,
                adapter_name=name,
                source_kind=kind,
                source=reference,
                is_replacement=is_replacement,
                has_own_samples=bool(texts),
                created_at=time.time(),
                squeeze=how,
                origin=origin,
            )
            return await self._accept(request, content=_digest_of(reference, *texts))
        except BaseException:
            await self.abandon(job_id)
            raise

    async def submit_samples(
        self,
        adapter_name: str,
        texts: Sequence[str],
        *,
        origin: Origin = Origin(),  # noqa: B008  (a frozen value)
    ) -> IngestJob:
        """Accept more sample texts for a registered adapter.

        Args:
            adapter_name: its name.
            texts: the texts.
            origin: who asked.

        Returns:
            As `submit_upload`.

        Raises:
            UnknownAdapter: no adapter of this name is registered.
            InvalidAdapter: `invalid_samples` or the like.
            RegistryUnavailable: Redis does not answer; nothing is kept.
        """
        await self._catalog.entry(adapter_name)
        job_id, folder = await self.open_folder()
        try:
            await asyncio.to_thread(_write_samples, folder / SAMPLES_FILE, texts)
            request = IngestRequest(
                job_id=job_id,
                adapter_name=adapter_name,
                source_kind=SourceKind.SAMPLES,
                source=f"{len(texts)} texts",
                is_replacement=False,
                has_own_samples=True,
                created_at=time.time(),
                origin=origin,
            )
            return await self._accept(request, content=_digest_of(*texts))
        except BaseException:
            await self.abandon(job_id)
            raise

    def _checked(self, name: str) -> str:
        if name in self._taken_names:
            raise InvalidInput(
                f"{name!r} is the base model's own name.",
                code="invalid_adapter_name",
                remedy="Choose another name: as a `model` value it would mean the base.",
                place="name",
            )
        if name in _ROUTE_NAMES:
            raise InvalidInput(
                f"{name!r} is the name of a route.", code="invalid_adapter_name", remedy="Choose another.", place="name"
            )
        return name

    async def _accept(self, request: IngestRequest, *, content: str) -> IngestJob:
        await asyncio.to_thread(self._staging.accept, request)
        job = pending_job(request, due_at=request.created_at + PENDING_GRACE_SECONDS)
        fingerprint = _digest_of(
            request.adapter_name, request.source_kind, content, str(request.is_replacement), str(request.squeeze)
        )
        owner = await self._jobs.submit(job, fingerprint=fingerprint)
        if owner.job_id != job.job_id:
            await self.abandon(job.job_id)
            _log.info("submission_joined", adapter=request.adapter_name, job_id=owner.job_id)
            return owner
        try:
            await self._queue.enqueue(request.job_id)
        except Unavailable as error:
            # It is accepted all the same: recovery queues it as soon as the broker answers again.
            _log.warning("enqueue_postponed", job_id=request.job_id, reason=error.message)
        _log.info("adapter_accepted", adapter=request.adapter_name, job_id=request.job_id, source=request.source_kind)
        return job

    def _arrange(self, upload: ReceivedUpload) -> str | None:
        """Bring all files under their own names into the staging folder; the archive's folder name, if any."""
        inner_name = None
        if upload.archive is not None:
            inner_name = self._unpack(upload.archive, upload.folder)
            upload.archive.unlink()
        if upload.samples is not None:
            upload.samples.replace(upload.folder / SAMPLES_FILE)
        self._assemble(upload.folder)
        return inner_name


def _digest_of(*parts: str) -> str:
    """Equal for equal parts in equal order; JSON keeps their borders apart."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _name_for(given: str | None, derived: str) -> str:
    if given:
        return check_adapter_name(given)
    if not derived:
        raise InvalidInput(
            "The adapter has no name.",
            code="name_required",
            remedy="Send a form field or JSON field `name`.",
            place="name",
        )
    return check_adapter_name(derived)


def _stem(archive_name: str) -> str:
    return archive_stem(PurePosixPath(archive_name.replace("\\", "/")).name)


def _last_segment(reference: str, kind: SourceKind) -> str:
    """What a reference calls the adapter: its folder, its repository without the revision, its archive."""
    # A branch of the hub may have slashes, and the query of a URL anything.
    separator = {SourceKind.HUB: "@", SourceKind.URL: "?"}.get(kind)
    path = reference.partition(separator)[0] if separator else reference
    name = PurePosixPath(path.rstrip("/")).name.partition("@")[0]
    return name if kind is SourceKind.HUB else archive_stem(name) or name


def _write_samples(path: Path, texts: Sequence[str]) -> None:
    # json escapes what a text could break a line with; reading it back applies the same rules as to a file.
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    read_samples(path)
