"""Carries one accepted adapter through the states of `job.py` into the catalogue.

Every step can be repeated: whatever a killed process had done is done again, or found done. The order of the last
three steps makes the disk alone tell the truth: publish (the pointer names the job), forget the staging folder, note
READY. A job without a folder is therefore either published or lost, and the pointer says which.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from hilora.adapter import DecomposedAdapter, RocBasis
from hilora.decomposition import decompose
from hilora.errors import Exhausted, HiloraError, InvalidAdapter, RegistryUnavailable, RequestAborted, Unavailable
from services.common.log import get_logger
from services.registry.adapter_files import SAMPLES_FILE
from services.registry.artifact import ArtifactDraft, Provenance
from services.registry.audit import AuditEvent, AuditOutcome
from services.registry.catalog import Catalog
from services.registry.job import IngestRequest, IngestState, SourceKind, pending_job
from services.registry.ports import (
    AdapterSource,
    ArtifactStore,
    AuditLog,
    BaseModel,
    JobStore,
    Lease,
    StagingArea,
    TextEncoder,
)
from services.registry.profiling import profile
from services.registry.running_job import RunningJob
from services.registry.validation import AdapterValidator, ValidatedAdapter

_log = get_logger(__name__)

_OWN_SAMPLES_FILE = ".own-samples.jsonl"

RETRY_WINDOW_SECONDS = 120.0
"""A job that waits for its next attempt is not taken for lost during this time."""

_TICK_SECONDS = 0.5
"""How often progress is written and a cancellation is noticed, at most and at least."""


class Ingestion:
    """The work of the ingest process.

    Args:
        staging: the accepted files.
        jobs: the observable states.
        catalog: where adapters are published.
        artifacts: where versions are stored.
        validator: checks files.
        base: the served base model.
        encoder: embeds sample texts.
        sources: what can be read besides uploads.
        audit: told how each job ended.
        lease_seconds: how long a claim of the job store lasts without being extended.
    """

    def __init__(
        self,
        *,
        staging: StagingArea,
        jobs: JobStore,
        catalog: Catalog,
        artifacts: ArtifactStore,
        validator: AdapterValidator,
        base: BaseModel,
        encoder: TextEncoder,
        sources: Mapping[SourceKind, AdapterSource],
        audit: AuditLog,
        lease_seconds: float,
    ) -> None:
        self._staging = staging
        self._jobs = jobs
        self._catalog = catalog
        self._artifacts = artifacts
        self._validator = validator
        self._base = base
        self._encoder = encoder
        self._sources = sources
        self._audit = audit
        self._lease_seconds = lease_seconds

    async def run(self, job_id: str) -> None:
        """Do a job's work, unless it is done or another process does it.

        Raises:
            Exhausted: trying again later is sensible; the job is PENDING.
            Unavailable: likewise.
        """
        lease = await self._jobs.claim(job_id)
        if lease is None:
            return
        try:
            await self._run_under(lease, job_id)
        finally:
            await lease.release()

    async def give_up(self, job_id: str, error: HiloraError) -> None:
        """Fail a job whose attempts are used up."""
        job = await self._jobs.get(job_id)
        if job is not None and not job.state.is_terminal:
            request = await asyncio.to_thread(self._staging.request, job_id)
            await self._fail(RunningJob(job, self._jobs), request, error)

    async def _run_under(self, lease: Lease, job_id: str) -> None:
        """Work, and meanwhile keep the lease, write progress and look for a cancellation; stop if the lease is lost."""
        request = await asyncio.to_thread(self._staging.request, job_id)
        job = await self._jobs.get(job_id)
        if request is None or (job is not None and job.state.is_terminal):
            return  # done; or without files, and then recovery finds out what became of it
        if job is None:
            job = pending_job(request, due_at=time.time() + RETRY_WINDOW_SECONDS)
        elif job.state is not IngestState.PENDING:
            job = job.requeued(detail="taken up again", due_at=time.time() + RETRY_WINDOW_SECONDS)
        running = RunningJob(job, self._jobs)
        await running.look_for_cancellation()
        work = asyncio.create_task(self._attempt(running, request))
        extended_at = time.monotonic()
        try:
            while not (await asyncio.wait({work}, timeout=min(_TICK_SECONDS, self._lease_seconds / 3)))[0]:
                if time.monotonic() - extended_at >= self._lease_seconds / 3:
                    if not await lease.extend():
                        raise RegistryUnavailable(
                            "Another process took the ingest over.",
                            code="lease_lost",
                            remedy="Nothing needs to be done.",
                        )
                    extended_at = time.monotonic()
                await running.look_for_cancellation()
                await running.flush()
            await work
        finally:
            work.cancel()
            running.abandon()

    async def _attempt(self, running: RunningJob, request: IngestRequest) -> None:
        try:
            running.check()
            await self._ingest(running, request)
        except RequestAborted:
            await self._cancel(running, request)
        except (Exhausted, Unavailable) as error:
            detail, due_at = f"will be tried again: {error.message}", time.time() + RETRY_WINDOW_SECONDS
            await running.put(lambda job: job.requeued(detail=detail, due_at=due_at))
            raise
        except HiloraError as error:
            await self._fail(running, request, error)
        except Exception as error:
            # A full disk or a fault of ours: the job must not stay in limbo, nor the process die of one adapter.
            _log.exception("ingest_broken", job_id=request.job_id)
            reason = HiloraError(
                f"The ingest broke: {type(error).__name__}.",
                code="ingest_failed",
                remedy="See the registry's log; upload again once the cause is gone.",
            )
            await self._fail(running, request, reason)

    async def _ingest(self, running: RunningJob, request: IngestRequest) -> None:
        await running.move(IngestState.FETCHING, "fetching the files")
        folder = self._staging.files(request.job_id)
        source = request.source
        if request.source_kind is not SourceKind.UPLOAD:
            source = await asyncio.to_thread(self._fetch, request, folder)
        if await self._is_registered(running, request, folder):
            return
        await running.move(IngestState.VALIDATING, "checking files, tensors and shapes")
        validated = await asyncio.to_thread(self._validator.validate, folder)
        await running.move(IngestState.DECOMPOSING, "computing rank-one components")
        decomposed = await asyncio.to_thread(_decompose, validated, running)
        await running.move(IngestState.PROFILING, f"embedding {len(validated.texts)} sample texts")
        samples = await asyncio.to_thread(
            profile, validated.texts, self._encoder, source="upload" if request.has_own_samples else "bundled"
        )
        running.report(0.6, "storing the version")
        draft = ArtifactDraft(
            decomposed=decomposed,
            profile=samples,
            provenance=Provenance(
                source_kind=request.source_kind.value,
                source=source,
                source_sha256=validated.source_sha256,
                declared_base_model=validated.adapter.base_model,
            ),
            base_model=self._base.name,
        )
        manifest = await asyncio.to_thread(self._artifacts.write, draft)
        # The last moment at which it can be called off: published is published.
        await running.look_for_cancellation()
        running.check()
        entry = await self._catalog.publish(
            manifest,
            adapter_name=request.adapter_name,
            job_id=request.job_id,
            is_replacement=request.is_replacement,
        )
        await asyncio.to_thread(self._staging.discard, request.job_id)
        await self._finish(running, request, entry.adapter_id)

    def _fetch(self, request: IngestRequest, folder: Path) -> str:
        """Bring the files in beside the request; sample texts of the client stay."""
        samples, kept = folder / SAMPLES_FILE, folder / _OWN_SAMPLES_FILE
        if request.has_own_samples and not kept.exists():
            # Aside under a name no source writes, in one step: whenever this is killed, the next attempt finds them.
            samples.rename(kept)
        source = self._sources[request.source_kind].fetch(request.source, folder)
        if request.has_own_samples:
            shutil.copyfile(kept, samples)
        return source

    async def _is_registered(self, running: RunningJob, request: IngestRequest, folder: Path) -> bool:
        """Finish early if the name means this very content already."""
        digest = await asyncio.to_thread(self._validator.digest, folder)
        manifest = await self._catalog.identical(
            request.adapter_name,
            source_sha256=digest,
            base_model=self._base.name,
            encoder_id=self._encoder.encoder_id,
        )
        if manifest is None:
            return False
        entry = await self._catalog.publish(
            manifest, adapter_name=request.adapter_name, job_id=request.job_id, is_replacement=False
        )
        # The pointer names the job that made it, not this one: here READY is noted first.
        await self._finish(running, request, entry.adapter_id)
        await asyncio.to_thread(self._staging.discard, request.job_id)
        return True

    async def _finish(self, running: RunningJob, request: IngestRequest, adapter_id: str) -> None:
        await running.put(lambda job: job.ready(adapter_id))
        await self._record(running, request, AuditOutcome.DONE, adapter=adapter_id)
        _log.info("ingest_ready", job_id=request.job_id, adapter=adapter_id)

    async def _fail(self, running: RunningJob, request: IngestRequest | None, error: HiloraError) -> None:
        job = running.job
        _log.warning("ingest_failed", job_id=job.job_id, adapter=job.adapter_name, code=error.code, reason=str(error))
        await running.put(lambda job: job.failed(error))
        await self._record(running, request, AuditOutcome.FAILED, code=error.code)
        await asyncio.to_thread(self._staging.discard, job.job_id)

    async def _cancel(self, running: RunningJob, request: IngestRequest) -> None:
        await running.put(lambda job: job.cancelled())
        await self._record(running, request, AuditOutcome.DONE, action="cancel_ingest")
        await asyncio.to_thread(self._staging.discard, request.job_id)
        _log.info("ingest_cancelled", job_id=request.job_id, adapter=request.adapter_name)

    async def _record(
        self,
        running: RunningJob,
        request: IngestRequest | None,
        outcome: AuditOutcome,
        *,
        action: str = "ingest",
        adapter: str | None = None,
        code: str | None = None,
    ) -> None:
        """Tell the audit log; what is done stays done where it cannot be written."""
        event = AuditEvent(
            principal=request.origin.principal if request else "internal",
            request_id=request.origin.request_id if request else "",
            action=action,
            outcome=outcome,
            door="ingest",
            adapter=adapter or running.job.adapter_name,
            job_id=running.job.job_id,
            code=code,
        )
        try:
            await asyncio.to_thread(self._audit.append, event)
        except OSError:
            _log.exception("audit_failed", job_id=running.job.job_id, action=action)


def _decompose(validated: ValidatedAdapter, running: RunningJob) -> dict[RocBasis, DecomposedAdapter]:
    decomposed: dict[RocBasis, DecomposedAdapter] = {}
    for basis in RocBasis:
        running.report(len(decomposed) / len(RocBasis), f"computing rank-one components: {basis.value}")
        decomposed[basis] = decompose(validated.adapter, basis=basis)
    for adapter in decomposed.values():
        for module_path, rocs in adapter.modules.items():
            # Finite factors can overflow once they are multiplied and scaled.
            if not (rocs.a_RD.isfinite().all() and rocs.b_RO.isfinite().all()):
                raise InvalidAdapter(
                    f"The update of {module_path[:120]} exceeds float32.",
                    code="non_finite_weights",
                    remedy="The training diverged, or lora_alpha is wrong: upload a sound checkpoint.",
                    place=module_path[:120],
                )
    return decomposed
