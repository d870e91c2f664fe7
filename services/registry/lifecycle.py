"""What happens to an adapter after its ingest: versions, reviews, access, aliases, better profiles."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from hilora.access import AdapterAccess
from hilora.adapter import check_adapter_name
from hilora.errors import Conflict, Exhausted, InvalidInput, UnknownAdapter
from hilora.tags import checked_tags
from hilora.version_selector import split_reference
from services.common.log import get_logger
from services.registry.artifact import GIVEN_SOURCES, ProfileRecord, SamplesSource
from services.registry.catalog import unknown_adapter
from services.registry.catalog_entry import CatalogRecord
from services.registry.ports import ProfileStore, RegistrationStore, TextEncoder
from services.registry.profile_orders import ProfileOrders
from services.registry.profiling import MAX_SAMPLES, profile
from services.registry.publication import CatalogPublisher, KnownName, Published
from services.registry.registration import AdapterVersion, Registration, Review, VersionState

_log = get_logger(__name__)

_PROFILE_ATTEMPTS = 4


class AdapterLifecycle:
    """Changes of registered adapters.

    Args:
        publisher: changes the catalogue.
        registrations: the versions of each name.
        profiles: their profiles.
        taken_names: names that mean something else to clients: the base model's.
        orders: where a version that is approved without a profile gets one ordered.
    """

    def __init__(
        self,
        *,
        publisher: CatalogPublisher,
        registrations: RegistrationStore,
        profiles: ProfileStore,
        taken_names: frozenset[str] = frozenset(),
        orders: ProfileOrders | None = None,
    ) -> None:
        self._publisher = publisher
        self._registrations = registrations
        self._profiles = profiles
        self._taken_names = taken_names
        self._orders = orders

    async def registration(self, adapter_name: str) -> Registration:
        """The record of a name, also of one that is quarantined or retired. Raises UnknownAdapter."""
        registration = await asyncio.to_thread(self._registrations.get, adapter_name)
        if registration is None:
            raise unknown_adapter(adapter_name)
        return registration

    async def registrations(self) -> list[Registration]:
        """The records of all names, by name."""
        return await asyncio.to_thread(self._registrations.all)

    async def roll_back(self, adapter_name: str, *, selector: str | None = None) -> Published:
        """Let a name mean an earlier version again; plans that run with the later one finish.

        Args:
            adapter_name: the name; a retired one comes back.
            selector: which version; None takes the newest servable one before the current one.

        Raises:
            UnknownAdapter: `unknown_adapter`, or `unknown_adapter_version`.
            Conflict: `version_not_servable`; `nothing_to_roll_back_to`.
        """

        def rolled_back(known: KnownName) -> Registration:
            registration = _known(known, adapter_name)
            if selector is not None:
                return registration.pointing_to(registration.selected(selector))
            current = registration.current or 0
            earlier = [v for v in registration.versions if v.version < current and v.state is VersionState.READY]
            if not earlier:
                raise Conflict(
                    f"{adapter_name} has no earlier version that may be served.",
                    code="nothing_to_roll_back_to",
                    remedy=f"GET /v1/adapters/{adapter_name}/versions lists all versions.",
                    place="version",
                )
            return registration.pointing_to(earlier[-1])

        published = await self._publisher.change(adapter_name, rolled_back)
        _log.info("adapter_rolled_back", adapter=adapter_name, version=published.registration.current)
        return published

    async def review(
        self, adapter_name: str, *, is_approval: bool, reviewer: str, reason: str, selector: str | None = None
    ) -> Published:
        """Decide about a version in quarantine; an approved one becomes what the name means.

        Args:
            adapter_name: the name.
            is_approval: whether it may be served.
            reviewer: who decides.
            reason: why, for the record.
            selector: which version; None takes the newest that waits.

        Raises:
            UnknownAdapter: `unknown_adapter`, or `unknown_adapter_version`.
            Conflict: `nothing_to_review`; `version_not_reviewable`.
            InvalidInput: `reviewer_required`.
        """
        if not reviewer.strip():
            raise InvalidInput(
                "The decision names nobody who takes it.",
                code="reviewer_required",
                remedy='Send {"reviewer": "your name", "reason": "..."}.',
                place="reviewer",
            )
        review = Review(is_approval=is_approval, reviewer=reviewer, reason=reason, reviewed_at=time.time())

        def reviewed(known: KnownName) -> Registration:
            registration = _known(known, adapter_name)
            if selector is not None:
                return registration.reviewed(registration.selected(selector), review)
            waiting = [v for v in registration.versions if v.state is VersionState.QUARANTINED]
            if not waiting:
                raise Conflict(
                    f"No version of {adapter_name} waits for a decision.",
                    code="nothing_to_review",
                    remedy=f"GET /v1/adapters/{adapter_name}/versions lists all versions.",
                    place="version",
                )
            return registration.reviewed(waiting[-1], review)

        published = await self._publisher.change(adapter_name, reviewed)
        _log.info("adapter_reviewed", adapter=adapter_name, is_approval=is_approval, reviewer=reviewer, reason=reason)
        if is_approval and self._orders is not None:
            await self._orders.order_if_missing(adapter_name)
        return published

    async def set_access(self, adapter_name: str, access: AdapterAccess) -> Published:
        """Say who may use an adapter, in all its versions. Raises UnknownAdapter."""

        def opened(known: KnownName) -> Registration:
            return replace(_known(known, adapter_name), access=access)

        return await self._publisher.change(adapter_name, opened)

    async def set_tags(self, adapter_name: str, tags: Sequence[str]) -> Published:
        """Say by which words requests may ask for an adapter, in all its versions.

        Raises:
            InvalidInput: `invalid_tag`.
            UnknownAdapter: no adapter of this name is registered.
        """
        wanted = checked_tags(tags)

        def tagged(known: KnownName) -> Registration:
            return replace(_known(known, adapter_name), tags=wanted)

        return await self._publisher.change(adapter_name, tagged)

    async def aliases(self) -> Mapping[str, str]:
        """`name` or `name@version` by alias."""
        return (await asyncio.to_thread(self._registrations.record)).aliases

    async def put_alias(self, alias: str, target: str) -> int:
        """Let an alias stand for a name, or for one version of it.

        Args:
            alias: not a registered name, nor the base model's.
            target: `name` or `name@version`; the version is kept by its number.

        Returns:
            The generation from which on it does.

        Raises:
            InvalidInput: `invalid_adapter_name`, `invalid_adapter_reference`.
            Conflict: `alias_is_a_name`.
            UnknownAdapter: the target does not exist.
        """
        check_adapter_name(alias)
        adapter_name, selector = split_reference(target)
        registration = await self.registration(adapter_name)
        if selector is not None:
            target = f"{adapter_name}@{registration.selected(selector).version}"

        def named(record: CatalogRecord, names: frozenset[str]) -> CatalogRecord:
            if alias in names or alias in self._taken_names:
                raise Conflict(
                    f"{alias!r} is a name already; an alias never stands before a name.",
                    code="alias_is_a_name",
                    remedy="Choose another alias.",
                    place="alias",
                )
            return replace(record, aliases={**record.aliases, alias: target})

        return await self._publisher.change_record(named)

    async def delete_alias(self, alias: str) -> int:
        """Let an alias stand for nothing. Raises UnknownAdapter (`unknown_alias`)."""

        def unnamed(record: CatalogRecord, names: frozenset[str]) -> CatalogRecord:
            del names
            if alias not in record.aliases:
                raise UnknownAdapter(
                    f"There is no alias {alias[:128]!r}.",
                    code="unknown_alias",
                    remedy="GET /v1/aliases lists them.",
                    place="alias",
                )
            return replace(record, aliases={key: value for key, value in record.aliases.items() if key != alias})

        return await self._publisher.change_record(unnamed)

    async def add_samples(
        self, adapter_name: str, texts: tuple[str, ...], *, encoder: TextEncoder, job_id: str
    ) -> Published:
        """Give the current version a profile of its own texts and more; its components and all plans stay.

        Texts that the registry found or made itself give way to the first ones that are sent.

        Args:
            adapter_name: a registered name.
            texts: more sample texts; those it has already change nothing.
            encoder: what embeds them.
            job_id: the job that adds them.

        Raises:
            UnknownAdapter: no such adapter.
            InvalidInput: `too_many_samples`, for the union.
            Exhausted: `profile_changes`, if others keep changing it at the same time.
        """
        return await self._with_profile(
            adapter_name, lambda version: self._extended(version, texts, encoder), job_id=job_id
        )

    async def refresh_profile(self, adapter_name: str, *, encoder: TextEncoder, job_id: str) -> Published:
        """Give the current version, which has a profile, one of the same texts under an encoder. Raises like
        `add_samples`."""
        return await self._with_profile(adapter_name, lambda version: self._embedded(version, encoder), job_id=job_id)

    async def set_profile(
        self,
        adapter_name: str,
        version: AdapterVersion,
        texts: tuple[str, ...],
        *,
        source: SamplesSource,
        encoder: TextEncoder,
        job_id: str,
    ) -> Published:
        """Give a version a profile of other texts, instead of the one that it has.

        Args:
            adapter_name: a registered name.
            version: the version, as it was when the texts were made for it.
            texts: at least one.
            source: where they came from.
            encoder: what embeds them.
            job_id: the job that found them.

        Raises:
            UnknownAdapter: no such adapter.
            Exhausted: `profile_changes`, if the version got another profile meanwhile.
        """
        made = await asyncio.to_thread(
            lambda: self._profiles.write(version.revision, profile(texts, encoder, source=source))
        )
        try:
            return await self._publish_profile(adapter_name, version, made, job_id=job_id)
        except Conflict as error:
            if error.code != "profile_changed":
                raise
            raise _keeps_changing(adapter_name) from error

    async def _with_profile(
        self, adapter_name: str, make: Callable[[AdapterVersion], ProfileRecord], *, job_id: str
    ) -> Published:
        for _ in range(_PROFILE_ATTEMPTS):
            registration = await self.registration(adapter_name)
            version = registration.current_version or registration.versions[-1]
            if registration.is_retired:
                raise unknown_adapter(adapter_name)
            made = await asyncio.to_thread(make, version)
            try:
                return await self._publish_profile(adapter_name, version, made, job_id=job_id)
            except Conflict as error:
                if error.code != "profile_changed":
                    raise
        raise _keeps_changing(adapter_name)

    async def _publish_profile(
        self, adapter_name: str, version: AdapterVersion, made: ProfileRecord, *, job_id: str
    ) -> Published:
        def profiled(known: KnownName) -> Registration:
            registration = _known(known, adapter_name)
            stored = registration.numbered(version.version)
            if dict(stored.profile_ids) != dict(version.profile_ids) or registration.is_retired:
                raise Conflict(f"The profile of {adapter_name} changed meanwhile.", code="profile_changed")
            # Under other encoders the old texts would go on to speak for it.
            better = replace(stored.noting(job_id), profile_ids={made.encoder_id: made.profile_id})
            return registration.replacing(better)

        return await self._publisher.change(adapter_name, profiled, encoder_id=made.encoder_id)

    def _extended(self, version: AdapterVersion, texts: tuple[str, ...], encoder: TextEncoder) -> ProfileRecord:
        known: tuple[str, ...] = ()
        sources: set[str] = {SamplesSource.UPLOAD}
        if (profile_id := newest_profile(version, encoder.encoder_id)) is not None:
            made_of = set(self._profiles.record(version.revision, profile_id).samples_source.split("+"))
            if not GIVEN_SOURCES.isdisjoint(made_of):
                known = self._profiles.texts(version.revision, profile_id)
                sources |= made_of
        union = tuple(dict.fromkeys((*known, *texts)))
        if len(union) > MAX_SAMPLES:
            raise InvalidInput(
                f"Together with the {len(known)} it has, these are {len(union)} texts; the limit is {MAX_SAMPLES}.",
                code="too_many_samples",
                remedy="Send fewer; the figures of an adapter hardly move beyond some hundred texts.",
                place="samples",
            )
        return self._profiles.write(version.revision, profile(union, encoder, source="+".join(sorted(sources))))

    def _embedded(self, version: AdapterVersion, encoder: TextEncoder) -> ProfileRecord:
        profile_id = newest_profile(version, encoder.encoder_id)
        assert profile_id is not None, "versions without a profile have nothing to embed"
        record = self._profiles.record(version.revision, profile_id)
        if record.encoder_id == encoder.encoder_id:
            return record
        texts = self._profiles.texts(version.revision, profile_id)
        return self._profiles.write(version.revision, profile(texts, encoder, source=record.samples_source))


def newest_profile(version: AdapterVersion, encoder_id: str) -> str | None:
    """A version's profile under an encoder, or the last one it got under another: the texts are the same."""
    if (own := version.profile_ids.get(encoder_id)) is not None:
        return own
    return next(reversed(list(version.profile_ids.values())), None)


def _keeps_changing(adapter_name: str) -> Exhausted:
    return Exhausted(
        f"Others keep changing the profile of {adapter_name}.", code="profile_changes", remedy="Try again later."
    )


def _known(known: KnownName, adapter_name: str) -> Registration:
    if known.registration is None:
        raise unknown_adapter(adapter_name)
    return known.registration
