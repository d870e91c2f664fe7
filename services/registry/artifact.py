"""An ingested adapter version as content: its tensors with their manifest, and, beside them, its profiles.

An artifact is named by what its tensors are; a profile is named by the texts and the encoder that made it. New texts or
a new encoder therefore make a new profile and leave the artifact, and everybody who holds its tensors, alone.

Shapes: D in-features, O out-features, R components of one module, m sample texts, E embedding dimension.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from hilora.adapter import DecomposedAdapter, RocBasis
from hilora.compression import Squeeze
from hilora.fingerprint import AdapterTraits
from services.registry.validation_report import ValidationReport

FORMAT_VERSION = 2
"""Version of the store's layout; part of an artifact's identity. 1 kept the samples inside the artifact."""


class SamplesSource(StrEnum):
    """Where the texts of a profile came from."""

    UPLOAD = "upload"
    """Sent by the client."""
    BUNDLED = "bundled"
    """`samples.jsonl` among the adapter's files."""
    DATASET = "dataset"
    """The data set that the adapter's card names."""
    SELF_PORTRAIT = "self_portrait"
    """What a worker generated with the adapter switched on."""
    CARD = "card"
    """The adapter's card: its examples, description and tags."""


GIVEN_SOURCES = frozenset({SamplesSource.UPLOAD, SamplesSource.BUNDLED})
"""Texts that somebody chose for this adapter: nothing that the registry finds itself takes their place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleProfile:
    """The texts that describe an adapter's task, as points of the encoder's space."""

    texts: tuple[str, ...]
    embeddings_mE: NDArray[np.float32]
    """`[m, E]`, each row of norm 1."""
    encoder_id: str
    source: str
    """Where the texts came from, see `SamplesSource`; several are joined by `+`."""

    @property
    def profile_id(self) -> str:
        """The identity of the profile."""
        return profile_id_of(texts=self.texts, encoder_id=self.encoder_id, source=self.source)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileSubject:
    """A registered version that is to get a profile."""

    adapter_name: str
    adapter_id: str
    lora_rank: int
    card: str | None
    """Its model card."""
    is_served: bool
    """Whether workers may run it: it is what its name means, and not in quarantine."""
    catalog_generation: int
    """The generation from which on workers know it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileRecord:
    """What a stored profile says about itself (`profile.json`)."""

    profile_id: str
    """64 hex digits: name of the folder."""
    revision: str
    """The artifact it belongs to."""
    encoder_id: str
    embedding_dim: int
    num_samples: int
    samples_source: str
    created_at: float
    """Unix seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Where an adapter's files came from and what they said about themselves."""

    source_kind: str
    source: str
    """File name, folder, or `owner/name@commit`."""
    source_sha256: str
    """Digest of config, weights and sample texts as received: equal for the same adapter sent twice."""
    declared_base_model: str | None
    """`base_model_name_or_path` of the adapter's config; informational."""
    source_format: str = "peft"
    """The method its files belong to, such as `rasa`; expanded exactly."""
    squeeze: Squeeze | None = None
    """The compression that was asked for."""
    energy_kept: float | None = None
    """Share of the update's energy that the compression left."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArtifactDraft:
    """All that is to be stored of one adapter version."""

    decomposed: Mapping[RocBasis, DecomposedAdapter]
    """The same update in every basis."""
    provenance: Provenance
    base_model: str
    """Name of the base the adapter was checked against."""
    report: ValidationReport = field(default_factory=ValidationReport)
    """What the checks found. No part of the identity: it speaks of the pool, too."""
    traits: AdapterTraits | None = None
    """What later adapters are compared with."""
    card: str | None = None
    """The model card that came with the files. No part of the identity: it is a description."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArtifactManifest:
    """What a stored version says about itself (`manifest.json`)."""

    revision: str
    """Content hash, 64 hex digits: name of the folder."""
    base_model: str
    lora_rank: int
    num_modules: int
    component_bytes: int
    """Size of one basis of the components."""
    files: Mapping[str, str]
    """sha256 by file name."""
    provenance: Provenance
    created_at: float
    """Unix seconds."""
    traits: AdapterTraits | None = None
    """What later adapters are compared with; missing in older versions."""
    format_version: int = FORMAT_VERSION

    @property
    def component_sha256(self) -> dict[str, str]:
        """sha256 of the components file by basis."""
        return {basis.value: self.files[component_file_name(basis)] for basis in RocBasis}


def component_file_name(basis: RocBasis) -> str:
    """Name of the components file of one basis inside a version's folder.

    Keys are `<module_path>.roc_a` `[R, D]` and `<module_path>.roc_b` `[R, O]`, float32, scaling folded in.
    """
    return f"rocs_{basis.value}.safetensors"


def revision_of(*, files: Mapping[str, str], base_model: str) -> str:
    """The identity of a version: sha256 over its files' digests and the base they were made for, 64 hex digits."""
    return _digest({"format_version": FORMAT_VERSION, "files": dict(files), "base_model": base_model})


def profile_id_of(*, texts: Sequence[str], encoder_id: str, source: str) -> str:
    """The identity of a profile: sha256 over its texts in order, their source and the encoder, 64 hex digits.

    Args:
        texts: the sample texts.
        encoder_id: name and fingerprint of the encoder, its instruction included.
        source: see `SampleProfile`.
    """
    return _digest({"texts": list(texts), "encoder_id": encoder_id, "source": source})


def source_digest(*, config: bytes, weights_sha256: str, texts: Sequence[str]) -> str:
    """The identity of an adapter as it was sent in, before anything is computed from it."""
    digest = hashlib.sha256(b"hilora-source-1")
    for part in (config, weights_sha256.encode(), *(text.encode() for text in texts)):
        # The length in front keeps ("ab", "c") and ("a", "bc") apart.
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _digest(identity: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
