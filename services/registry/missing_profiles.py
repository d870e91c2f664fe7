"""Looks for adapters in use that nothing can be routed to, because making their profile failed, and orders it again.

A failure that lasts is no reason to ask for ever: each one doubles the wait, and after a few of them the adapter is
left to its owner, who finds the failure in its report.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace

from hilora.errors import HiloraError
from services.common.log import get_logger
from services.registry.ports import RegistrationStore
from services.registry.profile_orders import ProfileOrders
from services.registry.publication import CatalogPublisher, KnownName
from services.registry.registration import ProfileFailure, Registration

_log = get_logger(__name__)

_MAX_WAIT_SECONDS = 86_400.0
_ORDER_GRACE_SECONDS = 60.0
"""An ingest orders the profile itself right after its publication; only what is older was left without an order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileRetryPolicy:
    """How often, and how soon."""

    max_attempts: int = 5
    """Failures after which nothing is ordered any more."""
    wait_seconds: float = 600.0
    """Between the first failure and the next order; each further one doubles it, up to a day."""


class MissingProfiles:
    """Notes failed profiles, and orders them again when it is time.

    Args:
        publisher: changes the records.
        registrations: the versions of each name.
        orders: the way to a profile.
        policy: how often, and how soon.
    """

    def __init__(
        self,
        *,
        publisher: CatalogPublisher,
        registrations: RegistrationStore,
        orders: ProfileOrders,
        policy: ProfileRetryPolicy,
    ) -> None:
        self._publisher = publisher
        self._registrations = registrations
        self._orders = orders
        self._policy = policy

    async def note(self, adapter_name: str, error: HiloraError) -> None:
        """Remember that making the profile of what a name means now failed for good."""

        def failed(known: KnownName) -> Registration:
            registration = known.registration
            assert registration is not None, "names are never forgotten"
            version = registration.current_version or registration.versions[-1]
            if version.profile_ids:
                return registration
            before = version.profile_failure
            failure = ProfileFailure(
                num_attempts=1 + (before.num_attempts if before else 0),
                failed_at=time.time(),
                code=error.code,
                message=error.message,
            )
            return registration.replacing(replace(version, profile_failure=failure))

        if await asyncio.to_thread(self._registrations.get, adapter_name) is not None:
            await self._publisher.note(adapter_name, failed)

    async def look(self) -> list[str]:
        """Order what is missing and due.

        Returns:
            The names.

        Raises:
            RegistryUnavailable: Redis does not answer.
        """
        if not self._orders.has_sources:
            return []
        registrations = await asyncio.to_thread(self._registrations.all)
        due = [item.adapter_name for item in registrations if self._is_due(item)]
        for adapter_name in due:
            await self._orders.order_if_missing(adapter_name)
        if due:
            _log.info("profiles_ordered_again", num_adapters=len(due), adapters=due[:10])
        return due

    def _is_due(self, registration: Registration) -> bool:
        version = registration.current_version
        if registration.is_retired or version is None or version.profile_ids:
            return False
        failure = version.profile_failure
        if failure is None:
            return time.time() - version.available_at >= _ORDER_GRACE_SECONDS
        wait_seconds = min(self._policy.wait_seconds * 2.0 ** (failure.num_attempts - 1), _MAX_WAIT_SECONDS)
        return failure.num_attempts < self._policy.max_attempts and time.time() - failure.failed_at >= wait_seconds
