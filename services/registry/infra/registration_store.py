"""Pointers from adapter names to versions: one small JSON file each, replaced in one step."""

from __future__ import annotations

from pathlib import Path

from hilora.adapter import ADAPTER_NAME_PATTERN, check_adapter_name
from services.common.log import get_logger
from services.registry.infra.durable import replace_durably
from services.registry.infra.records import REGISTRATION
from services.registry.registration import Registration

_log = get_logger(__name__)


class DiskRegistrationStore:
    """See `RegistrationStore`: `adapters/<name>.json`.

    Args:
        root: the folder of all pointers; created if missing.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    def put(self, registration: Registration) -> None:
        """See `RegistrationStore.put`."""
        replace_durably(self._file(check_adapter_name(registration.adapter_name)), REGISTRATION.dump_json(registration))

    def get(self, adapter_name: str) -> Registration | None:
        """See `RegistrationStore.get`."""
        # What could never be put is not there, and never becomes a path.
        return self._read(self._file(adapter_name)) if ADAPTER_NAME_PATTERN.fullmatch(adapter_name) else None

    def all(self) -> list[Registration]:
        """See `RegistrationStore.all`."""
        found = (self._read(file) for file in sorted(self._root.glob("[!.]*.json")))
        return [registration for registration in found if registration is not None]

    def _file(self, adapter_name: str) -> Path:
        return self._root / f"{adapter_name}.json"

    @staticmethod
    def _read(file: Path) -> Registration | None:
        try:
            return REGISTRATION.validate_json(file.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            # Nothing of ours writes such a file; one that was damaged by hand must not keep the others away.
            _log.error("registration_unreadable", file=file.name, reason=str(error))
            return None
