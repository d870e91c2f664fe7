"""The records of names and of the catalogue as a whole: small JSON files, each replaced in one step.

    <root>/<name>.json      versions, history and access of one name
    <root>/.catalog.json    encoder, aliases
    <root>/.lock            held while a record is compared and replaced

Comparing before replacing makes a publisher harmless that lost its right to publish without noticing, as after a long
pause: it finds another record than it read, and starts over.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from hilora.adapter import ADAPTER_NAME_PATTERN, check_adapter_name
from hilora.errors import Conflict
from services.common.log import get_logger
from services.registry.catalog_entry import CatalogRecord
from services.registry.infra.durable import replace_durably
from services.registry.infra.records import CATALOG_RECORD, REGISTRATION
from services.registry.registration import Registration

_T = TypeVar("_T")
_Stamp = tuple[int, int, int, int]

_log = get_logger(__name__)

_CATALOG_FILE = ".catalog.json"
_LOCK_FILE = ".lock"


class DiskRegistrationStore:
    """See `RegistrationStore`.

    Args:
        root: the folder of all records; created if missing.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._read_before: dict[str, tuple[_Stamp, Registration | None]] = {}
        root.mkdir(parents=True, exist_ok=True)

    def put(self, registration: Registration, *, replaces: Registration | None) -> None:
        """See `RegistrationStore.put`."""
        file = self._file(check_adapter_name(registration.adapter_name))
        with self._locked():
            if _read(file, REGISTRATION) != replaces:
                raise _changed(registration.adapter_name)
            replace_durably(file, REGISTRATION.dump_json(registration))

    def get(self, adapter_name: str) -> Registration | None:
        """See `RegistrationStore.get`."""
        # What could never be put is not there, and never becomes a path.
        if not ADAPTER_NAME_PATTERN.fullmatch(adapter_name):
            return None
        return _read(self._file(adapter_name), REGISTRATION)

    def all(self) -> list[Registration]:
        """See `RegistrationStore.all`. A file that was not replaced since the last call is not read again."""
        known, found = self._read_before, dict[str, tuple[_Stamp, Registration | None]]()
        for file in sorted(self._root.glob("[!.]*.json")):
            try:
                # Taken before the content: what is replaced in between is read once more the next time.
                stamp = _stamp(file.stat())
            except FileNotFoundError:
                continue
            read = known.get(file.name)
            if read is None or read[0] != stamp:
                read = stamp, _read(file, REGISTRATION)
            found[file.name] = read
        self._read_before = found
        return [registration for _, registration in found.values() if registration is not None]

    def record(self) -> CatalogRecord:
        """See `RegistrationStore.record`."""
        return _read(self._root / _CATALOG_FILE, CATALOG_RECORD) or CatalogRecord()

    def put_record(self, record: CatalogRecord, *, replaces: CatalogRecord) -> None:
        """See `RegistrationStore.put_record`."""
        with self._locked():
            if self.record() != replaces:
                raise _changed("The catalogue's record")
            replace_durably(self._root / _CATALOG_FILE, CATALOG_RECORD.dump_json(record))

    def _file(self, adapter_name: str) -> Path:
        return self._root / f"{adapter_name}.json"

    @contextmanager
    def _locked(self) -> Generator[None]:
        """Let one thread of one process compare and replace at a time; a process that dies lets go."""
        with (self._root / _LOCK_FILE).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _stamp(status: os.stat_result) -> _Stamp:
    """Differs for each file that a name ever had: a record is replaced by a new file, never written into."""
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def _read(file: Path, kind: TypeAdapter[_T]) -> _T | None:
    try:
        return kind.validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        # Nothing of ours writes such a file; one that was damaged by hand must not keep the others away.
        _log.error("registration_unreadable", file=file.name, reason=str(error))
        return None


def _changed(what: str) -> Conflict:
    return Conflict(
        f"{what} was changed by another process meanwhile.", code="registration_changed", remedy="Try again."
    )
