"""Adapter files as bytes, honest and hostile, and the archives that carry them."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch

from tests.builders.adapters import peft_config, peft_tensors, random_adapter

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
SAMPLES = "samples.jsonl"


def config_bytes(**changes: object) -> bytes:
    return json.dumps(peft_config(**changes)).encode()


def weights_bytes(*, seed: int = 0, tensors: Mapping[str, torch.Tensor] | None = None) -> bytes:
    return safetensors.torch.save(dict(peft_tensors(random_adapter(seed=seed)) if tensors is None else tensors))


def samples_bytes(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts or ("sort these words", "sort them")).encode()


def adapter_files(**changes: bytes) -> dict[str, bytes]:
    """A sound adapter by file name; `config`, `weights` and `samples` replace one of them."""
    return {
        CONFIG: changes.get("config", config_bytes()),
        WEIGHTS: changes.get("weights", weights_bytes()),
        SAMPLES: changes.get("samples", samples_bytes()),
    }


def safetensors_bytes(
    header: Mapping[str, Any] | bytes, data: bytes = b"", *, header_bytes: int | None = None
) -> bytes:
    """A safetensors file with any header; `header_bytes` lets its length field lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if header_bytes is None else header_bytes) + text + data


def zip_bytes(members: Mapping[str, bytes], *, symlinks: Mapping[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        for name, target in (symlinks or {}).items():
            member = zipfile.ZipInfo(name)
            member.create_system = 3
            member.external_attr = 0o120777 << 16
            archive.writestr(member, target)
    return buffer.getvalue()


def tar_bytes(
    members: Mapping[str, bytes], *, special: Mapping[str, bytes] | None = None, compression: str = ""
) -> bytes:
    """A tar archive; `special` maps names to tar types such as `tarfile.SYMTYPE`, all pointing at /etc/passwd."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, kind in (special or {}).items():
            member = tarfile.TarInfo(name)
            member.type = kind
            member.linkname = "/etc/passwd"
            archive.addfile(member)
    return buffer.getvalue()
