"""Stored versions read back: their components, and the statistics that are kept beside them.

The statistics are derived from the components and take a few numbers per module. A version that was stored before
there were any gets them from its components.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hilora.adapter import DecomposedAdapter, RocBasis
from hilora.update_statistics import ModuleStatistics, UpdateStatistics, update_statistics
from services.registry.ports import ArtifactStore

STATISTICS_FILE = "statistics.json"
_KEY = "singular_values"


class StoredComponents:
    """Implements `ComponentReader`.

    Args:
        artifacts: the versions.
        root: their folder.
    """

    def __init__(self, artifacts: ArtifactStore, *, root: Path) -> None:
        self._artifacts = artifacts
        self._root = root

    def svd_components(self, revision: str) -> DecomposedAdapter:
        """See `ComponentReader.svd_components`."""
        return self._artifacts.components(revision, RocBasis.SVD)

    def statistics(self, revision: str) -> UpdateStatistics:
        """See `ComponentReader.statistics`."""
        self._artifacts.manifest(revision)  # refuses what is no revision before it becomes a path
        try:
            return _read(json.loads((self._root / revision / STATISTICS_FILE).read_bytes()))
        except (OSError, ValueError, KeyError, TypeError):
            return update_statistics(self.svd_components(revision))


def statistics_file(decomposed: DecomposedAdapter) -> bytes:
    """The content of `STATISTICS_FILE` for an adapter in the SVD basis."""
    statistics = update_statistics(decomposed)
    values = {path: module.singular_values for path, module in statistics.modules.items()}
    return json.dumps({_KEY: values}, separators=(",", ":")).encode()


def _read(content: Any) -> UpdateStatistics:
    return UpdateStatistics(
        modules={
            str(path): ModuleStatistics(singular_values=tuple(float(value) for value in values))
            for path, values in content[_KEY].items()
        }
    )
