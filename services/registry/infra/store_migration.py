"""The layout of the data folder: recognised at every start, brought up to date from version 1, refused if it is newer.

    <data_dir>/format.json    {"format_version": 2}

Version 1 had no such file. It kept an adapter's samples inside its artifact and one version a name. Migration moves the
samples into profiles and turns each pointer into a history of one version; identities stay, so that workers keep what
they have. Every step can be repeated after a crash; the file is written last.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.numpy

from hilora.errors import InvalidInput, UnknownAdapter
from services.common.log import get_logger
from services.registry.artifact import FORMAT_VERSION, ProfileRecord, SampleProfile
from services.registry.infra.artifact_store import MANIFEST_FILE, DiskArtifactStore
from services.registry.infra.durable import replace_durably
from services.registry.infra.profile_store import DiskProfileStore
from services.registry.infra.records import REGISTRATION
from services.registry.infra.registration_store import DiskRegistrationStore
from services.registry.registration import AdapterVersion, Registration, VersionState

_log = get_logger(__name__)

_FORMAT_FILE = "format.json"
_POLL_SECONDS = 0.2
_OLD_SAMPLE_FILES = ("samples.safetensors", "samples.jsonl")
_OLD_MANIFEST_FIELDS = ("encoder_id", "embedding_dim", "num_samples", "samples_source")


class DataFolder:
    """The stores of one data folder.

    Args:
        data_dir: created if missing.
    """

    def __init__(self, data_dir: Path) -> None:
        self._root = data_dir
        self.registrations = DiskRegistrationStore(data_dir / "adapters")
        self.artifacts = DiskArtifactStore(data_dir / "artifacts")
        self.profiles = DiskProfileStore(data_dir / "profiles")

    def prepare(self) -> None:
        """Make the folder one of this version. One process at a time.

        Raises:
            InvalidInput: `unsupported_store_format`, for a folder that a newer registry wrote.
        """
        if self._format_version() == FORMAT_VERSION:
            return
        if self._is_old():
            self._migrate()
        replace_durably(self._root / _FORMAT_FILE, json.dumps({"format_version": FORMAT_VERSION}).encode())

    def wait_until_prepared(self, *, timeout_seconds: float) -> None:
        """Wait for the registry to bring an old folder up to date; a fresh one needs nothing.

        Raises:
            InvalidInput: `unsupported_store_format`, also for an old one that nobody migrates.
        """
        deadline = time.monotonic() + timeout_seconds
        while self._format_version() != FORMAT_VERSION and self._is_old():
            if time.monotonic() > deadline:
                raise InvalidInput(
                    f"The data folder {self._root} has the layout of an older registry.",
                    code="unsupported_store_format",
                    remedy="Start the registry of this version on it: it migrates the folder.",
                    place="data_dir",
                )
            time.sleep(_POLL_SECONDS)

    def _format_version(self) -> int | None:
        try:
            version = json.loads((self._root / _FORMAT_FILE).read_bytes())["format_version"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise _unsupported(self._root, "unreadable") from error
        if version != FORMAT_VERSION:
            raise _unsupported(self._root, version)
        return FORMAT_VERSION

    def _is_old(self) -> bool:
        """Whether there is anything here, and thus of a version that wrote no format file."""
        return bool(self.artifacts.folders.stored()) or any((self._root / "adapters").glob("[!.]*.json"))

    def _migrate(self) -> None:
        revisions = self.artifacts.folders.stored()
        found = [record for revision in revisions if (record := self._split(revision)) is not None]
        profiles = {record.revision: record for record in found}
        files = sorted((self._root / "adapters").glob("[!.]*.json"))
        for file in files:
            self._rewrite(file, profiles)
        record = self.registrations.record()
        encoders = Counter(item.encoder_id for item in profiles.values())
        if encoders and not record.encoder_id:
            encoder_id = encoders.most_common(1)[0][0]
            self.registrations.put_record(replace(record, encoder_id=encoder_id), replaces=record)
        _log.info("store_migrated", num_artifacts=len(revisions), num_names=len(files), format_version=FORMAT_VERSION)

    def _split(self, revision: str) -> ProfileRecord | None:
        """Move the samples of one artifact into a profile; the profile, or None if it has none that can be read."""
        folder = self.artifacts.folders.folder(revision)
        try:
            manifest: dict[str, Any] = json.loads((folder / MANIFEST_FILE).read_bytes())
            if manifest["format_version"] == FORMAT_VERSION:
                # Done before a crash.
                keys = [key for key in self.profiles.folders.stored() if key.startswith(f"{revision}/")]
                return self.profiles.record(*keys[0].split("/")) if keys else None
            lines = (folder / "samples.jsonl").read_bytes().split(b"\n")
            profile = SampleProfile(
                texts=tuple(str(json.loads(line)["text"]) for line in lines if line),
                embeddings_mE=safetensors.numpy.load((folder / "samples.safetensors").read_bytes())["embeddings"],
                encoder_id=str(manifest["encoder_id"]),
                source=str(manifest["samples_source"]),
            )
        except (OSError, ValueError, KeyError) as error:
            _log.error("artifact_not_migrated", revision=revision, reason=repr(error))
            return None
        record = self.profiles.write(revision, profile)
        for field in _OLD_MANIFEST_FIELDS:
            del manifest[field]
        manifest["files"] = {key: value for key, value in manifest["files"].items() if key not in _OLD_SAMPLE_FILES}
        manifest["format_version"] = FORMAT_VERSION
        replace_durably(folder / MANIFEST_FILE, json.dumps(manifest, indent=2).encode())
        for name in _OLD_SAMPLE_FILES:
            (folder / name).unlink(missing_ok=True)
        return record

    def _rewrite(self, file: Path, profiles: dict[str, ProfileRecord]) -> None:
        """Turn one old pointer into a history of one version."""
        try:
            old: dict[str, Any] = json.loads(file.read_bytes())
            revision = str(old["revision"])
        except (ValueError, KeyError, TypeError):
            return  # rewritten before a crash; or damaged, and then the reader says so
        profile = profiles.get(revision)
        try:
            source_sha256 = self.artifacts.manifest(revision).provenance.source_sha256
        except UnknownAdapter:
            source_sha256 = ""
        version = AdapterVersion(
            version=1,
            revision=revision,
            state=VersionState.READY,
            source_sha256=source_sha256,
            created_at=float(old["created_at"]),
            job_ids=(str(old["job_id"]),),
            profile_ids={profile.encoder_id: profile.profile_id} if profile else {},
        )
        registration = Registration(
            adapter_name=str(old["adapter_name"]),
            versions=(version,),
            current=1,
            is_retired=old["state"] == "RETIRED",
            catalog_generation=int(old["catalog_generation"]),
            changed_at=float(old["created_at"]),
        )
        replace_durably(file, REGISTRATION.dump_json(registration))


def _unsupported(root: Path, version: object) -> InvalidInput:
    return InvalidInput(
        f"The data folder {root} has format {version}; this registry reads {FORMAT_VERSION}.",
        code="unsupported_store_format",
        remedy="Run the version that wrote it, or a newer one.",
        place="data_dir",
    )
