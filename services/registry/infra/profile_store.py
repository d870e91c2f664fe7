"""Profiles as write-once folders beside the artifacts they belong to.

profiles/<revision>/<profile_id>/profile.json           what it is
embeddings.safetensors  `embeddings` [m, E]
grams-<scheme>.safetensors  `ids` and `lengths` of the texts' character grams
samples.jsonl           the texts, to be embedded again under another encoder
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from hilora.character_grams import GRAM_SCHEME, SampleGrams
from hilora.errors import UnknownAdapter
from services.registry.artifact import ProfileRecord, SampleProfile
from services.registry.infra.records import PROFILE_RECORD
from services.registry.infra.write_once import WriteOnceFolders

_RECORD_FILE = "profile.json"
_EMBEDDINGS_FILE = "embeddings.safetensors"
_EMBEDDINGS_KEY = "embeddings"
_GRAMS_FILE = f"grams-{GRAM_SCHEME.replace('/', '-')}.safetensors"
"""Of another scheme it is another file: profiles keep the grams of their time, and get new ones from their texts."""
_TEXTS_FILE = "samples.jsonl"


class DiskProfileStore:
    """See `ProfileStore`.

    Args:
        root: the folder of all profiles; created if missing.
    """

    def __init__(self, root: Path) -> None:
        self.folders = WriteOnceFolders(root, depth=2)

    def write(self, revision: str, profile: SampleProfile) -> ProfileRecord:
        """See `ProfileStore.write`."""
        profile_id = profile.profile_id
        key = f"{revision}/{profile_id}"
        if self.folders.touch(key):
            return self.record(revision, profile_id)
        record = ProfileRecord(
            profile_id=profile_id,
            revision=revision,
            encoder_id=profile.encoder_id,
            embedding_dim=int(profile.embeddings_mE.shape[1]),
            num_samples=len(profile.texts),
            samples_source=profile.source,
            created_at=time.time(),
        )
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in profile.texts)
        grams = SampleGrams.of(profile.texts)
        files = {
            _RECORD_FILE: PROFILE_RECORD.dump_json(record, indent=2),
            _EMBEDDINGS_FILE: safetensors.numpy.save({_EMBEDDINGS_KEY: profile.embeddings_mE}),
            _GRAMS_FILE: safetensors.numpy.save({"ids": grams.ids_N, "lengths": grams.lengths_M}),
            _TEXTS_FILE: "".join(lines).encode(),
        }
        self.folders.write(key, files)
        return self.record(revision, profile_id)

    def record(self, revision: str, profile_id: str) -> ProfileRecord:
        """See `ProfileStore.record`."""
        try:
            return PROFILE_RECORD.validate_json(self._read(revision, profile_id, _RECORD_FILE))
        except ValueError as error:
            raise _unknown(revision, profile_id, error) from error

    def embeddings(self, revision: str, profile_id: str) -> NDArray[np.float32]:
        """See `ProfileStore.embeddings`."""
        return safetensors.numpy.load(self._read(revision, profile_id, _EMBEDDINGS_FILE))[_EMBEDDINGS_KEY]

    def grams(self, revision: str, profile_id: str) -> SampleGrams:
        """See `ProfileStore.grams`."""
        try:
            stored = safetensors.numpy.load(self._read(revision, profile_id, _GRAMS_FILE))
        except UnknownAdapter:
            # A profile from before there were grams, or from the time of another scheme.
            return SampleGrams.of(self.texts(revision, profile_id))
        return SampleGrams(ids_N=stored["ids"], lengths_M=stored["lengths"])

    def texts(self, revision: str, profile_id: str) -> tuple[str, ...]:
        """See `ProfileStore.texts`."""
        lines = self._read(revision, profile_id, _TEXTS_FILE).split(b"\n")
        return tuple(str(json.loads(line)["text"]) for line in lines if line)

    def sweep(self) -> None:
        """See `ProfileStore.sweep`."""
        self.folders.sweep()

    def _read(self, revision: str, profile_id: str, file_name: str) -> bytes:
        try:
            return (self.folders.folder(f"{revision}/{profile_id}") / file_name).read_bytes()
        except (OSError, ValueError) as error:
            raise _unknown(revision, profile_id, error) from error


def _unknown(revision: str, profile_id: str, reason: object) -> UnknownAdapter:
    return UnknownAdapter(
        f"No profile {profile_id[:64]!r} of {revision[:64]!r} is stored here ({reason}).",
        code="unknown_profile",
        remedy="Send sample texts to POST /v1/adapters/{name}/samples.",
        place="profile_id",
    )
