"""The pool as the registrations on disk tell it."""

from __future__ import annotations

from services.registry.ports import RegistrationStore


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
            registration.adapter_name: current.revision
            for registration in self._registrations.all()
            if not registration.is_retired and (current := registration.current_version) is not None
        }
