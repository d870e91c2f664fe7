"""Learned gates as files in a local folder: `<name>@<head of its SHA-256>.safetensors`.

The id names the content, as an adapter's does: caches that are keyed by it never hold what another gate made. The
layout of a file is in `hilora/learned_gate.py`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load

from hilora.adapter import ADAPTER_NAME_PATTERN, adapter_id_of
from hilora.errors import InvalidInput, UnknownAdapter
from hilora.learned_gate import LearnedGate, gate_from_tensors, invalid_gate

_SUFFIX = ".safetensors"


class GateFiles:
    """A folder of gates. May be called from any thread.

    Args:
        folder: where they are; it may be filled while the worker runs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fetch(self, gate_id: str) -> LearnedGate:
        """See `GateSource`."""
        name, _, _ = gate_id.partition("@")
        # The id comes from a request: nothing but a name and a hash may become a path.
        if not ADAPTER_NAME_PATTERN.fullmatch(name) or not ADAPTER_NAME_PATTERN.fullmatch(gate_id.replace("@", "", 1)):
            raise _unknown(gate_id)
        try:
            content = (self._folder / f"{gate_id}{_SUFFIX}").read_bytes()
        except OSError as error:
            raise _unknown(gate_id) from error
        if adapter_id_of(name, hashlib.sha256(content).hexdigest()) != gate_id:
            raise InvalidInput(
                f"The file of gate {gate_id} holds something else than its name promises.",
                code="invalid_gate",
                remedy="Copy the file again, or name it by its own hash.",
                place="plan.gate.gate_id",
            )
        try:
            return gate_from_tensors(load(content), metadata=_metadata(content))
        except SafetensorError as error:
            raise invalid_gate(f"It is not a safetensors file: {error}.") from error


def _metadata(content: bytes) -> dict[str, str]:
    """Of a file that was loaded already: safetensors reads metadata from paths only, and the path may hold something
    else by now."""
    num_header_bytes = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + num_header_bytes])
    return header.get("__metadata__", {})


def _unknown(gate_id: str) -> UnknownAdapter:
    return UnknownAdapter(
        f"There is no gate {gate_id!r}.",
        code="unknown_gate",
        remedy="Copy its file to the folder HILORA_WORKER_GATES_DIR.",
        place="plan.gate.gate_id",
    )
