"""The ingest process, wired from its settings."""

from __future__ import annotations

import threading
import time

from hilora.errors import HiloraError
from services.common.log import get_logger
from services.common.sequence_encoder import EncoderBackend, SentenceTransformerEncoder
from services.registry.adapter_profiling import AdapterProfiling
from services.registry.entrypoints.profile_tasks import register_reprofile_task, start_reprofiling
from services.registry.entrypoints.tasks import register_ingest_task, run_ingest_process
from services.registry.fetching import Fetcher
from services.registry.infra.assembly import assemble
from services.registry.infra.event_loop_thread import EventLoopThread
from services.registry.infra.registered_pool import RegisteredPool
from services.registry.ingestion import Ingestion
from services.registry.pool_check import PoolCheck
from services.registry.process_setup import build_shared_parts
from services.registry.reprofiling import Reprofiling
from services.registry.settings import RegistrySettings

_log = get_logger(__name__)


class IngestProcess:
    """The process that does the ingests: Celery's threads around one event loop.

    The loop lives as long as the process, so that the Redis connections do, too.
    """

    def __init__(self, settings: RegistrySettings) -> None:
        shared = build_shared_parts(settings)
        # Both are loaded before the first job is taken: no claim runs out while a model is imported.
        shared.base.modules()
        encoder = SentenceTransformerEncoder(
            settings.encoder,
            instruction=settings.encoder_instruction,
            backend=EncoderBackend.AUTO,
            kept_folder=settings.kept_encoders_dir,
        )
        shared.data.wait_until_prepared(timeout_seconds=settings.redis_wait_seconds)
        self._ingestion = Ingestion(
            staging=shared.staging,
            jobs=shared.jobs,
            catalog=shared.catalog,
            lifecycle=shared.lifecycle,
            profiling=AdapterProfiling(
                lifecycle=shared.lifecycle,
                artifacts=shared.data.artifacts,
                profiles=shared.data.profiles,
                encoder=encoder,
                sources=shared.profile_texts,
            ),
            orders=shared.orders,
            missing_profiles=shared.missing_profiles,
            artifacts=shared.data.artifacts,
            profiles=shared.data.profiles,
            validator=shared.validator,
            base=shared.base,
            encoder=encoder,
            fetcher=Fetcher(sources=shared.sources, assemble=assemble),
            pool_check=PoolCheck(source=RegisteredPool(shared.data.registrations), artifacts=shared.data.artifacts),
            audit=shared.audit,
            lease_seconds=settings.job_lease_seconds,
            holds_norm_outliers=settings.hold_norm_outliers,
        )
        self._reprofiling = Reprofiling(
            publisher=shared.publisher,
            registrations=shared.data.registrations,
            profiles=shared.data.profiles,
            encoder=encoder,
            max_versions=settings.reprofile_batch,
        )
        self._reprofiled_at = float("-inf")
        self._look_seconds = settings.reprofile_look_seconds
        self._celery = shared.celery
        self._log_level = settings.log_level
        self._num_concurrent = settings.max_concurrent_ingests
        self._loop = EventLoopThread(name="ingest-loop")
        register_ingest_task(self._celery, self)
        register_reprofile_task(self._celery, self, pause_seconds=settings.reprofile_pause_seconds)

    def run(self, job_id: str) -> None:
        """See `Ingestion.run`."""
        self._loop.call(self._ingestion.run(job_id))

    def give_up(self, job_id: str, error: HiloraError) -> None:
        """See `Ingestion.give_up`."""
        self._loop.call(self._ingestion.give_up(job_id, error))

    def reprofile(self) -> bool:
        """See `Reprofiling.run`."""
        self._reprofiled_at = time.monotonic()
        return self._loop.call(self._reprofiling.run())

    def serve(self) -> None:
        """Take jobs until SIGTERM or SIGINT; embed the pool again if the encoder was changed, now or later."""
        with self._loop:
            if self._loop.call(self._reprofiling.is_due()):
                start_reprofiling(self._celery)
            threading.Thread(target=self._look, name="reprofiling-look", daemon=True).start()
            run_ingest_process(self._celery, num_concurrent=self._num_concurrent, log_level=self._log_level)

    def _look(self) -> None:
        """From time to time, order what is missing: another process may have published under another encoder."""
        while True:
            time.sleep(self._look_seconds)
            if time.monotonic() - self._reprofiled_at < self._look_seconds:
                continue  # turns follow one another already
            try:
                if self._loop.call(self._reprofiling.is_due()):
                    start_reprofiling(self._celery)
            except Exception:
                # It must outlive every surprise, as a Redis that is away: the next look repeats it.
                _log.exception("reprofiling_look_failed")


def build_ingest_worker(settings: RegistrySettings) -> IngestProcess:
    """The ingest process, with base model and encoder loaded.

    Raises:
        InvalidInput: the base model or the encoder cannot be loaded.
    """
    return IngestProcess(settings)
