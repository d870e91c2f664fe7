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
import zstandard

from tests.builders.adapters import peft_config, peft_tensors, random_adapter

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
WEIGHTS_INDEX = "adapter_model.safetensors.index.json"
SAMPLES = "samples.jsonl"
CARD = "README.md"


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


def sharded_weights(whole: bytes, *, num_shards: int) -> dict[str, bytes]:
    """The tensors of a file dealt out to shards, with the index; by file name."""
    tensors = safetensors.torch.load(whole)
    shards: list[dict[str, torch.Tensor]] = [{} for _ in range(num_shards)]
    for place, (name, tensor) in enumerate(sorted(tensors.items())):
        shards[place % num_shards][name] = tensor
    names = [f"adapter_model-{number + 1:05d}-of-{num_shards:05d}.safetensors" for number in range(num_shards)]
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = json.dumps({"metadata": {"total_size": len(whole)}, "weight_map": weight_map}).encode()
    files = {name: safetensors.torch.save(shard) for name, shard in zip(names, shards, strict=True)}
    return {WEIGHTS_INDEX: index, **files}


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


def zstd_bytes(data: bytes, *, level: int = 3, window_log: int = 0) -> bytes:
    """Packed in one frame whose header asks for a window of its own size."""
    parameters = zstandard.ZstdCompressionParameters.from_level(level, window_log=window_log)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return packer.compress(data) + packer.flush()


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
