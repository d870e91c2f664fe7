"""Adapter versions as write-once folders named by the hash of their content.

    artifacts/<revision>/manifest.json           what it is and where it came from; sha256 of the other files
                         rocs_svd.safetensors    components, SVD basis
                         rocs_trained.safetensors  the same update in the basis of training
                         samples.safetensors     `embeddings` [m, E]
                         samples.jsonl           the texts
                         statistics.json         singular values by module; derived, and no part of the identity

A folder is written under another name, forced onto the disk and renamed: one that bears a revision is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
import uuid
from pathlib import Path
from typing import BinaryIO

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from numpy.typing import NDArray

from hilora.adapter import DecomposedAdapter, RocBasis
from hilora.errors import UnknownAdapter
from services.registry.artifact import ArtifactDraft, ArtifactManifest, component_file_name, revision_of
from services.registry.infra.durable import flush_file, write_durably
from services.registry.infra.records import MANIFEST
from services.registry.infra.stored_components import STATISTICS_FILE, statistics_file

_MANIFEST_FILE = "manifest.json"
_EMBEDDINGS_FILE = "samples.safetensors"
_EMBEDDINGS_KEY = "embeddings"
_TEXTS_FILE = "samples.jsonl"
_ASIDE_PREFIX = ".writing-"
_ABANDONED_AFTER_SECONDS = 3600.0
_REVISION_LENGTH = 64
_HEX_DIGITS = frozenset("0123456789abcdef")


class DiskArtifactStore:
    """See `ArtifactStore`.

    Args:
        root: the folder of all versions; created if missing.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    def write(self, draft: ArtifactDraft) -> ArtifactManifest:
        """See `ArtifactStore.write`."""
        contents = _contents_of(draft)
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
        encoder_id = draft.profile.encoder_id
        revision = revision_of(files=digests, base_model=draft.base_model, encoder_id=encoder_id)
        if (self._root / revision).is_dir():
            return self.manifest(revision)
        adapter = draft.decomposed[RocBasis.SVD]
        manifest = ArtifactManifest(
            revision=revision,
            base_model=draft.base_model,
            encoder_id=encoder_id,
            embedding_dim=int(draft.profile.embeddings_mE.shape[1]),
            num_samples=len(draft.profile.texts),
            samples_source=draft.profile.source,
            lora_rank=adapter.lora_rank,
            num_modules=len(adapter.modules),
            component_bytes=len(contents[component_file_name(RocBasis.SVD)]),
            files=digests,
            provenance=draft.provenance,
            created_at=time.time(),
        )
        aside = self._root / f"{_ASIDE_PREFIX}{uuid.uuid4().hex}"
        aside.mkdir()
        for name, data in contents.items():
            write_durably(aside / name, data)
        write_durably(aside / STATISTICS_FILE, statistics_file(adapter))
        write_durably(aside / _MANIFEST_FILE, MANIFEST.dump_json(manifest, indent=2))
        flush_file(aside)
        try:
            aside.rename(self._root / revision)
        except OSError:
            # Another process stored the same content first; anything else is a fault of the disk.
            if not (self._root / revision).is_dir():
                raise
            shutil.rmtree(aside)
            return self.manifest(revision)
        flush_file(self._root)
        return manifest

    def manifest(self, revision: str) -> ArtifactManifest:
        """See `ArtifactStore.manifest`."""
        try:
            return MANIFEST.validate_json((self._folder(revision) / _MANIFEST_FILE).read_bytes())
        except (OSError, ValueError) as error:
            raise _unknown(revision, error) from error

    def find(self, revision_prefix: str) -> str | None:
        """See `ArtifactStore.find`."""
        if not revision_prefix or not _HEX_DIGITS.issuperset(revision_prefix):
            return None
        matches = [folder.name for folder in self._root.glob(f"{revision_prefix}*")]
        return matches[0] if len(matches) == 1 else None

    def sample_embeddings(self, revision: str) -> NDArray[np.float32]:
        """See `ArtifactStore.sample_embeddings`."""
        try:
            data = (self._folder(revision) / _EMBEDDINGS_FILE).read_bytes()
        except OSError as error:
            raise _unknown(revision, error) from error
        return safetensors.numpy.load(data)[_EMBEDDINGS_KEY]

    def open_components(self, revision: str, basis: RocBasis) -> BinaryIO:
        """See `ArtifactStore.open_components`."""
        try:
            return (self._folder(revision) / component_file_name(basis)).open("rb")
        except OSError as error:
            raise _unknown(revision, error) from error

    def sweep(self) -> None:
        """See `ArtifactStore.sweep`."""
        for folder in self._root.glob(f"{_ASIDE_PREFIX}*"):
            with contextlib.suppress(FileNotFoundError):  # its writer finished between the two steps
                if time.time() - folder.stat().st_mtime > _ABANDONED_AFTER_SECONDS:
                    shutil.rmtree(folder)

    def _folder(self, revision: str) -> Path:
        if len(revision) != _REVISION_LENGTH or not _HEX_DIGITS.issuperset(revision):
            raise _unknown(revision, "not a revision")
        return self._root / revision


def _contents_of(draft: ArtifactDraft) -> dict[str, bytes]:
    contents = {component_file_name(basis): _components_file(draft.decomposed[basis]) for basis in RocBasis}
    contents[_EMBEDDINGS_FILE] = safetensors.numpy.save({_EMBEDDINGS_KEY: draft.profile.embeddings_mE})
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in draft.profile.texts)
    contents[_TEXTS_FILE] = "".join(lines).encode()
    return contents


def _components_file(adapter: DecomposedAdapter) -> bytes:
    tensors: dict[str, torch.Tensor] = {}
    for module_path, rocs in adapter.modules.items():
        tensors[f"{module_path}.roc_a"] = rocs.a_RD.to(torch.float32).contiguous()
        tensors[f"{module_path}.roc_b"] = rocs.b_RO.to(torch.float32).contiguous()
    return safetensors.torch.save(tensors)


def _unknown(revision: str, reason: object) -> UnknownAdapter:
    return UnknownAdapter(
        f"No adapter version {revision[:_REVISION_LENGTH]} is stored here ({reason}).",
        code="unknown_revision",
        remedy="List /v1/adapters for the versions that exist.",
        place="revision",
    )
