"""The pool as the registrations on disk tell it."""

from __future__ import annotations

from services.registry.ports import RegistrationStore
from services.registry.registration import RegistrationState


class RegisteredPool:
    """See `PoolSource`.

    Args:
        registrations: which version each name means.
    """

    def __init__(self, registrations: RegistrationStore) -> None:
        self._registrations = registrations

    def registered_versions(self) -> dict[str, str]:
        """See `PoolSource.registered_versions`."""
        return {
            registration.adapter_name: registration.revision
            for registration in self._registrations.all()
            if registration.state is RegistrationState.READY
        }
