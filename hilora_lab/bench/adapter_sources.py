"""Where the adapters of a large pool come from: made on demand, or read from files as the worker's disk tier does."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

from safetensors.torch import save_file

from hilora.adapter import DecomposedAdapter, RocBasis
from hilora_lab.bench.workload import Features, Workload, random_adapter
from services.worker.infra.component_client import parse_components


class RandomAdapterSource:
    """A `ComponentSource` of any adapter whose id ends in a number: random components, from that number alone.

    Args:
        features: the layers each adapter targets.
    """

    def __init__(self, features: Features) -> None:
        self._features = features

    def fetch(self, adapter_id: str, basis: RocBasis) -> DecomposedAdapter:
        """Components of their own at every call."""
        adapter = random_adapter(self._features, seed=int(adapter_id.rpartition("-")[2]))
        assert adapter.basis is basis, "plans of the benchmark name the basis of its adapters"
        return adapter


class ColdAdapterSource:
    """A `ComponentSource` that has a workload's adapters in memory and reads every other one from a file.

    A file's bytes are hashed and parsed, as the worker does with its disk tier. Few files serve any number of adapters:
    an id that was never asked for is cold, whatever it holds.

    Args:
        workload: what is in memory.
        folder: where the files are written.
        features: the layers each of them targets.
        num_files: files to write.
    """

    def __init__(self, workload: Workload, *, folder: Path, features: Features, num_files: int) -> None:
        self._workload = workload
        self._paths = [folder / f"cold-{idx}.safetensors" for idx in range(num_files)]
        self._num_reads = 0
        self._lock = threading.Lock()
        for idx, path in enumerate(self._paths):
            adapter = random_adapter(features, seed=-1 - idx)
            tensors = {f"{name}.roc_a": rocs.a_RD for name, rocs in adapter.modules.items()}
            save_file({**tensors, **{f"{name}.roc_b": rocs.b_RO for name, rocs in adapter.modules.items()}}, path)

    @property
    def num_reads(self) -> int:
        """Files read so far."""
        return self._num_reads

    def fetch(self, adapter_id: str, basis: RocBasis) -> DecomposedAdapter:
        """From memory or from a file."""
        if adapter_id in self._workload.adapters:
            return self._workload.fetch(adapter_id, basis)
        with self._lock:
            self._num_reads += 1
        content = self._paths[int(adapter_id.rpartition("-")[2]) % len(self._paths)].read_bytes()
        hashlib.sha256(content).digest()
        return parse_components(content, basis=basis, adapter_id=adapter_id)
