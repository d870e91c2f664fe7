"""Adapter versions as write-once folders named by the hash of their content.

artifacts/<revision>/manifest.json           what it is and where it came from; sha256 of the other files
rocs_svd.safetensors    components, SVD basis
rocs_trained.safetensors  the same update in the basis of training
validation.json         what was found when it was ingested
statistics.json         singular values by module; derived, and no part of the identity
card.md                 the model card, if one came along
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import BinaryIO

import safetensors.torch
import torch

from hilora.adapter import DecomposedAdapter, RankOneComponents, RocBasis
from hilora.errors import UnknownAdapter
from services.registry.artifact import ArtifactDraft, ArtifactManifest, component_file_name, revision_of
from services.registry.infra.durable import replace_durably
from services.registry.infra.records import MANIFEST
from services.registry.infra.stored_components import STATISTICS_FILE, statistics_file
from services.registry.infra.write_once import WriteOnceFolders
from services.registry.validation_report import ValidationReport, report_from_json

MANIFEST_FILE = "manifest.json"
"""Written with the components; says what they are."""

_REPORT_FILE = "validation.json"
_CARD_FILE = "card.md"
_REVISION_LENGTH = 64
_HEX_DIGITS = frozenset("0123456789abcdef")


class DiskArtifactStore:
    """See `ArtifactStore`.

    Args:
        root: the folder of all versions; created if missing.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.folders = WriteOnceFolders(root, depth=1)

    def write(self, draft: ArtifactDraft) -> ArtifactManifest:
        """See `ArtifactStore.write`."""
        contents = {component_file_name(basis): _components_file(draft.decomposed[basis]) for basis in RocBasis}
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
        revision = revision_of(files=digests, base_model=draft.base_model)
        if self.folders.touch(revision):
            return self.manifest(revision)
        adapter = draft.decomposed[RocBasis.SVD]
        manifest = ArtifactManifest(
            revision=revision,
            base_model=draft.base_model,
            lora_rank=adapter.lora_rank,
            num_modules=len(adapter.modules),
            component_bytes=len(contents[component_file_name(RocBasis.SVD)]),
            files=digests,
            provenance=draft.provenance,
            created_at=time.time(),
            traits=draft.traits,
        )
        described = {
            _REPORT_FILE: _report_bytes(draft.report),
            STATISTICS_FILE: statistics_file(adapter),
            MANIFEST_FILE: MANIFEST.dump_json(manifest, indent=2),
        }
        if draft.card is not None:
            described[_CARD_FILE] = draft.card.encode()
        self.folders.write(revision, {**contents, **described})
        return self.manifest(revision)

    def manifest(self, revision: str) -> ArtifactManifest:
        """See `ArtifactStore.manifest`."""
        try:
            return MANIFEST.validate_json((self.folders.folder(revision) / MANIFEST_FILE).read_bytes())
        except (OSError, ValueError) as error:
            raise _unknown(revision, error) from error

    def find(self, revision_prefix: str) -> str | None:
        """See `ArtifactStore.find`."""
        if not revision_prefix or not _HEX_DIGITS.issuperset(revision_prefix):
            return None
        matches = [folder.name for folder in self._root.glob(f"{revision_prefix}*")]
        return matches[0] if len(matches) == 1 else None

    def open_components(self, revision: str, basis: RocBasis) -> BinaryIO:
        """See `ArtifactStore.open_components`."""
        try:
            return (self.folders.folder(revision) / component_file_name(basis)).open("rb")
        except (OSError, ValueError) as error:
            raise _unknown(revision, error) from error

    def components(self, revision: str, basis: RocBasis) -> DecomposedAdapter:
        """See `ArtifactStore.components`."""
        with self.open_components(revision, basis) as stream:
            tensors = safetensors.torch.load(stream.read())
        paths = sorted({name.rpartition(".")[0] for name in tensors})
        return DecomposedAdapter(
            basis=basis,
            modules={
                path: RankOneComponents(a_RD=tensors[f"{path}.roc_a"], b_RO=tensors[f"{path}.roc_b"]) for path in paths
            },
        )

    def validation_report(self, revision: str) -> ValidationReport | None:
        """See `ArtifactStore.validation_report`."""
        try:
            folder = self.folders.folder(revision)
            if not folder.is_dir():
                raise FileNotFoundError("no such folder")
            report = folder / _REPORT_FILE
            return report_from_json(json.loads(report.read_bytes())) if report.exists() else None
        except (OSError, ValueError) as error:
            raise _unknown(revision, error) from error

    def put_validation_report(self, revision: str, report: ValidationReport) -> None:
        """See `ArtifactStore.put_validation_report`."""
        try:
            replace_durably(self.folders.folder(revision) / _REPORT_FILE, _report_bytes(report))
        except (OSError, ValueError) as error:
            raise _unknown(revision, error) from error

    def card(self, revision: str) -> str | None:
        """See `ArtifactStore.card`."""
        try:
            return (self.folders.folder(revision) / _CARD_FILE).read_text(encoding="utf-8")
        except (OSError, ValueError):
            return None

    def sweep(self) -> None:
        """See `ArtifactStore.sweep`."""
        self.folders.sweep()


def _report_bytes(report: ValidationReport) -> bytes:
    return json.dumps(report.to_json(), indent=2).encode()


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
