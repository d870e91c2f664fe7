"""Carries one accepted adapter through the states of `job.py` into the catalogue.

Every step can be repeated: whatever a killed process had done is done again, or found done. The order of the last
three steps makes the disk alone tell the truth: publish (the version names the job), forget the staging folder, note
READY. A job without a folder is therefore either published or lost, and the name's record says which.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from hilora.adapter import DecomposedAdapter, RocBasis
from hilora.adapter_review import NORM_OUTLIER
from hilora.decomposition import decompose
from hilora.errors import Exhausted, HiloraError, InvalidAdapter, RegistryUnavailable, RequestAborted, Unavailable
from services.common.log import get_logger
from services.registry.adapter_files import CARD_FILE, SAMPLES_FILE
from services.registry.adapter_profiling import AdapterProfiling
from services.registry.artifact import ArtifactDraft, Provenance, SampleProfile, SamplesSource
from services.registry.audit import AuditEvent, AuditOutcome
from services.registry.catalog import Catalog
from services.registry.catalog_entry import CatalogEntry
from services.registry.fetching import Fetcher
from services.registry.job import IngestRequest, IngestState, SourceKind, pending_job
from services.registry.lifecycle import AdapterLifecycle
from services.registry.missing_profiles import MissingProfiles
from services.registry.pool_check import Comparison, PoolCheck
from services.registry.ports import (
    ArtifactStore,
    AuditLog,
    BaseModel,
    JobStore,
    Lease,
    ProfileStore,
    StagingArea,
    TextEncoder,
)
from services.registry.profile_orders import ProfileOrders, ProfileSource
from services.registry.profiling import profile, read_samples
from services.registry.publication import Published
from services.registry.registration import VersionState
from services.registry.running_job import RunningJob
from services.registry.validation import AdapterValidator, ValidatedAdapter

_log = get_logger(__name__)

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
        lifecycle: where sample texts are added to an adapter.
        profiling: makes profiles of texts that nobody sent.
        orders: where a profile is ordered for an adapter without sample texts.
        missing_profiles: told of profiles that could not be made.
        artifacts: where versions are stored.
        profiles: where their profiles are.
        validator: checks files.
        base: the served base model.
        encoder: embeds sample texts.
        fetcher: brings referenced files in.
        pool_check: compares with what is registered.
        audit: told how each job ended.
        lease_seconds: how long a claim of the job store lasts without being extended.
        holds_norm_outliers: whether an update far larger or smaller than the pool's waits for approval.
    """

    def __init__(
        self,
        *,
        staging: StagingArea,
        jobs: JobStore,
        catalog: Catalog,
        lifecycle: AdapterLifecycle,
        profiling: AdapterProfiling,
        orders: ProfileOrders,
        missing_profiles: MissingProfiles,
        artifacts: ArtifactStore,
        profiles: ProfileStore,
        validator: AdapterValidator,
        base: BaseModel,
        encoder: TextEncoder,
        fetcher: Fetcher,
        pool_check: PoolCheck,
        audit: AuditLog,
        lease_seconds: float,
        holds_norm_outliers: bool = True,
    ) -> None:
        self._staging = staging
        self._jobs = jobs
        self._catalog = catalog
        self._lifecycle = lifecycle
        self._profiling = profiling
        self._orders = orders
        self._missing_profiles = missing_profiles
        self._artifacts = artifacts
        self._profiles = profiles
        self._validator = validator
        self._base = base
        self._encoder = encoder
        self._fetcher = fetcher
        self._pool_check = pool_check
        self._audit = audit
        self._lease_seconds = lease_seconds
        self._holds_norm_outliers = holds_norm_outliers

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
        if request.source_kind is SourceKind.SAMPLES:
            await self._add_samples(running, request, folder)
            return
        if request.source_kind is SourceKind.PROFILE:
            await self._make_profile(running, request)
            return
        source = await self._fetcher.fetch(running, request, folder)
        if await self._is_registered(running, request, folder):
            return
        await running.move(IngestState.VALIDATING, "checking files, tensors and shapes")
        validated = await asyncio.to_thread(self._validator.validate, folder, how=request.squeeze)
        comparison = await asyncio.to_thread(
            self._pool_check.compare,
            validated.adapter,
            adapter_name=request.adapter_name,
            source_sha256=validated.source_sha256,
        )
        report = validated.report.adding(comparison.findings)
        await running.put(lambda job: job.checked(report))
        await running.move(IngestState.DECOMPOSING, "computing rank-one components")
        decomposed = await asyncio.to_thread(_decompose, validated, running)
        await running.move(IngestState.PROFILING, f"embedding {len(validated.texts)} sample texts")
        samples = await asyncio.to_thread(self._profile, request, validated.texts)
        running.report(0.6, "storing the version")
        draft = ArtifactDraft(
            decomposed=decomposed,
            provenance=Provenance(
                source_kind=request.source_kind.value,
                source=source,
                source_sha256=validated.source_sha256,
                declared_base_model=validated.adapter.base_model,
                source_format=validated.source_format,
                squeeze=request.squeeze,
                energy_kept=validated.energy_kept,
            ),
            base_model=self._base.name,
            report=report,
            traits=comparison.traits,
            card=await asyncio.to_thread(_read_card, folder),
        )
        manifest = await asyncio.to_thread(self._artifacts.write, draft)
        record = samples and await asyncio.to_thread(self._profiles.write, manifest.revision, samples)
        # The last moment at which it can be called off: published is published.
        await running.look_for_cancellation()
        running.check()
        published = await self._catalog.publish(
            manifest,
            adapter_name=request.adapter_name,
            job_id=request.job_id,
            is_replacement=request.is_replacement,
            profile=record,
            source_sha256=validated.source_sha256,
            is_held=self._holds_norm_outliers and any(one.code == NORM_OUTLIER for one in comparison.findings),
        )
        if published.entry is not None and published.entry.revision == manifest.revision:
            await self._compare_again(running, comparison, published.entry)
        if samples is None:
            await self._orders.order_if_missing(request.adapter_name, origin=request.origin)
        await self._finish(running, request, published)

    async def _compare_again(self, running: RunningJob, comparison: Comparison, entry: CatalogEntry) -> None:
        """Look for equal adapters that others published meanwhile, and say so in the report."""
        findings = await asyncio.to_thread(
            self._pool_check.compare_again,
            comparison,
            revision=entry.revision,
            catalog_generation=entry.catalog_generation,
        )
        report = running.job.report
        if not findings or report is None:
            return
        amended = report.adding(findings)
        await running.put(lambda job: job.checked(amended))
        # An artifact that another name had first keeps the report of that name.
        if await asyncio.to_thread(self._artifacts.validation_report, entry.revision) == report:
            await asyncio.to_thread(self._artifacts.put_validation_report, entry.revision, amended)

    def _profile(self, request: IngestRequest, texts: tuple[str, ...]) -> SampleProfile | None:
        if not texts:
            return None
        source = SamplesSource.UPLOAD if request.has_own_samples else SamplesSource.BUNDLED
        return profile(texts, self._encoder, source=source)

    async def _make_profile(self, running: RunningJob, request: IngestRequest) -> None:
        """Give a registered adapter a profile of texts that the registry finds or makes itself."""
        wanted = ProfileSource(request.source)
        await running.move(IngestState.PROFILING, f"making a profile ({wanted.value})")
        published = await self._profiling.run(request.adapter_name, wanted=wanted, job_id=request.job_id)
        await self._finish(running, request, published)

    async def _add_samples(self, running: RunningJob, request: IngestRequest, folder: Path) -> None:
        """Give a registered adapter more sample texts."""
        texts = await asyncio.to_thread(read_samples, folder / SAMPLES_FILE)
        await running.look_for_cancellation()
        await running.move(IngestState.PROFILING, f"embedding {len(texts)} more sample texts")
        published = await self._lifecycle.add_samples(
            request.adapter_name, texts, encoder=self._encoder, job_id=request.job_id
        )
        await self._finish(running, request, published)

    async def _is_registered(self, running: RunningJob, request: IngestRequest, folder: Path) -> bool:
        """Finish early if the name means this very content already."""
        digest = await asyncio.to_thread(self._validator.digest, folder, how=request.squeeze)
        manifest = await self._catalog.identical(
            request.adapter_name,
            source_sha256=digest,
            base_model=self._base.name,
            encoder_id=self._encoder.encoder_id,
        )
        if manifest is None:
            return False
        published = await self._catalog.publish(
            manifest,
            adapter_name=request.adapter_name,
            job_id=request.job_id,
            is_replacement=False,
            source_sha256=digest,
        )
        await self._finish(running, request, published)
        return True

    async def _finish(self, running: RunningJob, request: IngestRequest, published: Published) -> None:
        version = published.registration.made_by(request.job_id)
        assert version is not None, "a publication notes its job"
        adapter_id = published.registration.adapter_id(version)
        is_held_back = version.state is VersionState.QUARANTINED
        await asyncio.to_thread(self._staging.discard, request.job_id)
        await running.put(lambda job: job.quarantined(adapter_id) if is_held_back else job.ready(adapter_id))
        await self._record(running, request, AuditOutcome.DONE, adapter=adapter_id)
        _log.info("ingest_ready", job_id=request.job_id, adapter=adapter_id, is_quarantined=is_held_back)

    async def _fail(self, running: RunningJob, request: IngestRequest | None, error: HiloraError) -> None:
        job = running.job
        _log.warning("ingest_failed", job_id=job.job_id, adapter=job.adapter_name, code=error.code, reason=str(error))
        await running.put(lambda job: job.failed(error))
        if request is not None and request.source_kind is SourceKind.PROFILE and request.source == ProfileSource.AUTO:
            await self._missing_profiles.note(request.adapter_name, error)
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


def _read_card(folder: Path) -> str | None:
    """The card as `FolderAssembler` left it: a text, or nothing."""
    card = folder / CARD_FILE
    return card.read_text(encoding="utf-8") if card.is_file() else None


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
