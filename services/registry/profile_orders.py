"""Orders profiles for adapters that came without sample texts: from then on a job like any other."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Sequence
from enum import StrEnum

from hilora.errors import Conflict, Unavailable
from services.common.log import get_logger
from services.registry.artifact import SamplesSource
from services.registry.catalog import unknown_adapter
from services.registry.job import IngestJob, IngestRequest, Origin, SourceKind, new_job_id, pending_job
from services.registry.ports import IngestQueue, JobStore, RegistrationStore, StagingArea
from services.registry.registration import Registration, RegistrationState

_log = get_logger(__name__)

_GRACE_SECONDS = 10.0


class ProfileSource(StrEnum):
    """What a profile is asked to be made of."""

    AUTO = "auto"
    """The first of the others that has something to say; texts that were sent stay what they are."""
    DATASET = "dataset"
    SELF_PORTRAIT = "self_portrait"
    CARD = "card"


class ProfileOrders:
    """The way to a profile that nobody sends texts for.

    Args:
        staging: where accepted jobs wait.
        jobs: their observable states.
        queue: hands them to the ingest process.
        registrations: what the names mean.
        sources: the sources that the operator allows, in order of preference.
    """

    def __init__(
        self,
        *,
        staging: StagingArea,
        jobs: JobStore,
        queue: IngestQueue,
        registrations: RegistrationStore,
        sources: Sequence[SamplesSource],
    ) -> None:
        self._staging = staging
        self._jobs = jobs
        self._queue = queue
        self._registrations = registrations
        self._sources = tuple(sources)

    @property
    def has_sources(self) -> bool:
        """Whether a profile can be made at all where nobody sends texts."""
        return bool(self._sources)

    async def order(
        self,
        adapter_name: str,
        wanted: ProfileSource = ProfileSource.AUTO,
        *,
        origin: Origin = Origin(),  # noqa: B008  (a frozen value)
    ) -> IngestJob:
        """Accept a job that makes a profile for what a name means now.

        Args:
            adapter_name: a registered name.
            wanted: the source.
            origin: who asked.

        Returns:
            Its job; or the unfinished job of an equal order.

        Raises:
            UnknownAdapter: no adapter of this name is registered.
            Conflict: `profile_source_off`, where the operator gave the registry no such source.
            RegistryUnavailable: Redis does not answer; nothing is kept.
        """
        if wanted is not ProfileSource.AUTO and SamplesSource(wanted.value) not in self._sources:
            raise Conflict(
                f"This registry makes no profiles from the source {wanted.value}.",
                code="profile_source_off",
                remedy=_REMEDIES[wanted],
                place="source",
            )
        registration = await asyncio.to_thread(self._registrations.get, adapter_name)
        if registration is None or registration.is_retired:
            raise unknown_adapter(adapter_name)
        revision = (registration.current_version or registration.versions[-1]).revision
        job_id = new_job_id()
        await asyncio.to_thread(self._staging.create, job_id)
        request = IngestRequest(
            job_id=job_id,
            adapter_name=adapter_name,
            source_kind=SourceKind.PROFILE,
            source=wanted.value,
            is_replacement=False,
            has_own_samples=False,
            created_at=time.time(),
            origin=origin,
        )
        try:
            await asyncio.to_thread(self._staging.accept, request)
            job = pending_job(request, due_at=request.created_at + _GRACE_SECONDS)
            owner = await self._jobs.submit(job, fingerprint=_fingerprint(adapter_name, revision, wanted))
        except BaseException:
            await asyncio.to_thread(self._staging.discard, job_id)
            raise
        if owner.job_id != job_id:
            await asyncio.to_thread(self._staging.discard, job_id)
            return owner
        try:
            await self._queue.enqueue(job_id)
        except Unavailable as error:
            # It is accepted all the same: recovery queues it as soon as the broker answers again.
            _log.warning("enqueue_postponed", job_id=job_id, reason=error.message)
        _log.info("profile_ordered", adapter=adapter_name, job_id=job_id, source=wanted.value)
        return job

    async def order_if_missing(
        self,
        adapter_name: str,
        *,
        origin: Origin = Origin(),  # noqa: B008  (a frozen value)
    ) -> IngestJob | None:
        """Order a profile for a name in use that has none, if there is anything to make it of."""
        registration = await asyncio.to_thread(self._registrations.get, adapter_name)
        if not self._sources or registration is None or not _lacks_profile(registration):
            return None
        return await self.order(adapter_name, origin=origin)


_REMEDIES = {
    ProfileSource.DATASET: "Have the operator set HILORA_REGISTRY_ALLOW_HUB=true, or send the texts yourself to "
    "POST /v1/adapters/{name}/samples.",
    ProfileSource.SELF_PORTRAIT: "Have the operator set HILORA_REGISTRY_WORKER_ADDRESS, or send texts to "
    "POST /v1/adapters/{name}/samples.",
    ProfileSource.CARD: 'Have the operator add "card" to HILORA_REGISTRY_PROFILE_SOURCES, or send texts to '
    "POST /v1/adapters/{name}/samples.",
}


def _fingerprint(adapter_name: str, revision: str, wanted: ProfileSource) -> str:
    """Equal for equal orders; JSON keeps the borders apart."""
    return hashlib.sha256(json.dumps(["profile", adapter_name, revision, wanted.value]).encode()).hexdigest()


def _lacks_profile(registration: Registration) -> bool:
    if registration.state is RegistrationState.RETIRED:
        return False
    version = registration.current_version or registration.versions[-1]
    return not version.profile_ids
