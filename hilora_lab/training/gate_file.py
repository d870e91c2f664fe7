"""A learned gate as the file that workers look for: `<name>@<head of its SHA-256>.safetensors`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from safetensors.torch import save

from hilora.adapter import adapter_id_of, check_adapter_name
from hilora.learned_gate import LearnedGate, gate_tensors


def write_gate(gate: LearnedGate, folder: Path, *, name: str) -> str:
    """Write a gate and return its id, by which plans name it.

    Args:
        gate: what was trained.
        folder: where workers look (`HILORA_WORKER_GATES_DIR`); made if it is not there.
        name: the part of the id that people read.

    Raises:
        InvalidInput: `invalid_adapter_name`, for a name that is not safe in a file name.
    """
    check_adapter_name(name)
    tensors, metadata = gate_tensors(gate)
    content = _in_order(save(tensors, metadata=metadata))
    gate_id = adapter_id_of(name, hashlib.sha256(content).hexdigest())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{gate_id}.safetensors"
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    # In one step: a worker may look at the folder meanwhile.
    partial.replace(path)
    return gate_id


def _in_order(content: bytes) -> bytes:
    """The same file with its header's fields in order: safetensors writes metadata in any, and the id is a hash."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]
