"""What must hold of the registry's data folder at every moment, checked on the files alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_KEY_LENGTH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class DiskCatalog:
    """What the records on disk say that the catalogue has to show."""

    revisions: Mapping[str, str]
    """Current revision by name, without retired and unapproved names."""
    aliases: Mapping[str, str]
    generations: Mapping[str, int] = field(default_factory=dict[str, int])
    """Generation of the last change by name, retired ones included."""


def disk_catalog(data_dir: Path) -> DiskCatalog:
    """Read the records."""
    revisions: dict[str, str] = {}
    generations: dict[str, int] = {}
    for record in _records(data_dir):
        name = record["adapter_name"]
        generations[name] = record["catalog_generation"]
        if record["current"] is not None and not record["is_retired"]:
            current = next(item for item in record["versions"] if item["version"] == record["current"])
            revisions[name] = current["revision"]
    whole = data_dir / "adapters" / ".catalog.json"
    aliases = json.loads(whole.read_bytes())["aliases"] if whole.exists() else {}
    return DiskCatalog(revisions=revisions, aliases=aliases, generations=generations)


def store_problems(data_dir: Path) -> list[str]:
    """Everything in the folder that a crash must not leave behind; empty if it is sound."""
    found: list[str] = []
    for record in _records(data_dir):
        numbers = [item["version"] for item in record["versions"]]
        if numbers != sorted(set(numbers)):
            found.append(f"{record['adapter_name']}: versions {numbers}")
        for item in record["versions"]:
            if item["state"] == "COLLECTED":
                continue
            found += artifact_problems(data_dir, item["revision"])
            for profile_id in item["profile_ids"].values():
                found += profile_problems(data_dir, item["revision"], profile_id)
    # Content that no record mentions may stay until it is collected; half of one under its final name may not.
    for folder in _keyed(data_dir / "artifacts"):
        found += artifact_problems(data_dir, folder.name)
    for artifact in _keyed(data_dir / "profiles"):
        for folder in _keyed(artifact):
            found += profile_problems(data_dir, artifact.name, folder.name)
    return sorted(set(found))


def artifact_problems(data_dir: Path, revision: str) -> list[str]:
    """What is missing or wrong in the folder of a version."""
    folder = data_dir / "artifacts" / revision
    try:
        files: dict[str, str] = json.loads((folder / "manifest.json").read_bytes())["files"]
        json.loads((folder / "validation.json").read_bytes())
        wrong = [name for name, digest in files.items() if _sha256(folder / name) != digest]
    except (OSError, ValueError) as error:
        return [f"artifact {revision[:12]}: {error}"]
    return [f"artifact {revision[:12]}: {name} is not what the manifest says" for name in wrong]


def profile_problems(data_dir: Path, revision: str, profile_id: str) -> list[str]:
    """What is missing or wrong in the folder of a profile."""
    folder = data_dir / "profiles" / revision / profile_id
    try:
        num_samples = json.loads((folder / "profile.json").read_bytes())["num_samples"]
        num_texts = len((folder / "samples.jsonl").read_bytes().splitlines())
        num_bytes = (folder / "embeddings.safetensors").stat().st_size
    except (OSError, ValueError) as error:
        return [f"profile {revision[:12]}/{profile_id[:12]}: {error}"]
    is_whole = num_texts == num_samples and num_bytes > 0
    return [] if is_whole else [f"profile {revision[:12]}/{profile_id[:12]}: {num_texts} texts of {num_samples}"]


def accepted_jobs(data_dir: Path) -> list[str]:
    """Jobs whose files still wait."""
    return [file.parent.name for file in (data_dir / "incoming").glob("[!.]*/request.json")]


def _records(data_dir: Path) -> Iterator[dict[str, Any]]:
    for file in sorted((data_dir / "adapters").glob("[!.]*.json")):
        yield json.loads(file.read_bytes())


def _keyed(root: Path) -> list[Path]:
    return [folder for folder in sorted(root.glob("[0-9a-f]*")) if len(folder.name) == _KEY_LENGTH]


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
