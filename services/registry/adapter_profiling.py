"""Gives a registered adapter a profile of texts that the registry finds or makes itself.

The sources are asked in the operator's order of preference; the first that has something to say is taken. One that is
away makes the job wait for it, and meanwhile the adapter gets the next best.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from hilora.errors import Conflict, Exhausted, InvalidInput, Unavailable
from services.common.log import get_logger
from services.registry.artifact import GIVEN_SOURCES, ProfileSubject, SamplesSource
from services.registry.catalog import unknown_adapter
from services.registry.lifecycle import AdapterLifecycle, newest_profile
from services.registry.ports import ArtifactStore, ProfileStore, ProfileTexts, TextEncoder
from services.registry.profile_orders import ProfileSource
from services.registry.publication import Published
from services.registry.registration import AdapterVersion, Registration

_log = get_logger(__name__)

ReportWork = Callable[[str], "object"]
"""Told what is being done, for a person."""


class AdapterProfiling:
    """The work of a profiling job.

    Args:
        lifecycle: gives versions their profiles.
        artifacts: has their cards.
        profiles: has the profiles they have already.
        encoder: embeds texts.
        sources: where texts may come from, in order of preference.
    """

    def __init__(
        self,
        *,
        lifecycle: AdapterLifecycle,
        artifacts: ArtifactStore,
        profiles: ProfileStore,
        encoder: TextEncoder,
        sources: Sequence[ProfileTexts],
    ) -> None:
        self._lifecycle = lifecycle
        self._artifacts = artifacts
        self._profiles = profiles
        self._encoder = encoder
        self._sources = tuple(sources)

    async def run(self, adapter_name: str, *, wanted: ProfileSource, job_id: str) -> Published:
        """Make a profile for what a name means now.

        Args:
            adapter_name: a registered name.
            wanted: the source; `auto` asks them all, and leaves texts that somebody sent alone.
            job_id: the job that makes it.

        Raises:
            UnknownAdapter: no such adapter (any more).
            InvalidInput: `no_profile_texts`.
            Conflict: `version_not_servable`: a self-portrait of a version that nobody approved yet.
            Exhausted: a source wants to be asked later.
            Unavailable: a source is away.
        """
        registration = await self._lifecycle.registration(adapter_name)
        if registration.is_retired:
            raise unknown_adapter(adapter_name)
        version = registration.current_version or registration.versions[-1]
        if wanted is ProfileSource.AUTO and await asyncio.to_thread(self._has_given_texts, version):
            return await self._lifecycle.refresh_profile(adapter_name, encoder=self._encoder, job_id=job_id)
        subject = await asyncio.to_thread(self._subject, registration, version)
        if wanted is ProfileSource.SELF_PORTRAIT and not subject.is_served:
            raise Conflict(
                f"{adapter_name} waits for approval: no worker may run it yet.",
                code="version_not_servable",
                remedy="Approve it first, or choose another source.",
                place="source",
            )
        wanted_sources = [s for s in self._sources if wanted in {ProfileSource.AUTO, s.source.value}]
        away: Exhausted | Unavailable | None = None
        for source in wanted_sources:
            if source.source is SamplesSource.SELF_PORTRAIT and not subject.is_served:
                continue
            if away is not None and version.profile_ids:
                break  # what it has is good enough to wait with
            try:
                texts = await source.texts(subject)
            except (Exhausted, Unavailable) as error:
                _log.warning("profile_source_away", adapter=adapter_name, source=source.source, reason=error.message)
                away = away or error
                continue
            if texts:
                published = await self._lifecycle.set_profile(
                    adapter_name, version, texts, source=source.source, encoder=self._encoder, job_id=job_id
                )
                if away is None:
                    return published
                break
        if away is not None:
            raise away
        raise _nothing_found(adapter_name, wanted)

    def _has_given_texts(self, version: AdapterVersion) -> bool:
        profile_id = newest_profile(version, self._encoder.encoder_id)
        if profile_id is None:
            return False
        made_of = self._profiles.record(version.revision, profile_id).samples_source.split("+")
        return not GIVEN_SOURCES.isdisjoint(made_of)

    def _subject(self, registration: Registration, version: AdapterVersion) -> ProfileSubject:
        return ProfileSubject(
            adapter_name=registration.adapter_name,
            adapter_id=registration.adapter_id(version),
            lora_rank=self._artifacts.manifest(version.revision).lora_rank,
            card=self._artifacts.card(version.revision),
            is_served=version.version == registration.current,
            catalog_generation=registration.catalog_generation,
        )


def _nothing_found(adapter_name: str, wanted: ProfileSource) -> InvalidInput:
    is_any = wanted is ProfileSource.AUTO
    where = "none of the registry's sources has" if is_any else f"the source {wanted.value} has no"
    return InvalidInput(
        f"There is nothing to make a profile of {adapter_name} from: {where} texts for it.",
        code="no_profile_texts",
        remedy=f"It can be named all the same; to have it routed to, send texts to "
        f"POST /v1/adapters/{adapter_name}/samples.",
        place="source",
    )
