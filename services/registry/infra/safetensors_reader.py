"""Reads safetensors files from strangers: every claim of the header is checked before memory is taken for it.

The format is an 8-byte little-endian length N, N bytes of JSON `{name: {dtype, shape, data_offsets}}`, and the data.
Published readers overflowed on shapes, followed offsets out of the buffer, or allocated what a header claimed; here a
file is refused unless its tensors fill the data part exactly, one after the other.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hilora.errors import InvalidAdapter
from services.registry.strict_json import parse_strictly

MAX_HEADER_BYTES = 16 * 1024 * 1024
"""A LoRA of a thousand modules has a header of about 200 KB."""

_LENGTH_BYTES = 8
_MAX_HEADER_VALUES = 1_000_000
"""A matrix takes eight; the largest mixtures of experts have 50,000 pairs of them."""
_METADATA = "__metadata__"
_MAX_DIMENSIONS = 8
_MAX_ELEMENTS = 2**59
_MAX_DIMENSION = 2**31
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
"""How a header calls a dtype."""

_REMEDY = "Save the adapter again with peft's save_pretrained; if it was downloaded, download it again."


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor, as a file's header describes it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    """Where its bytes begin, counted from the beginning of the data."""
    end: int


class HardenedSafetensorsReader:
    """See `TensorFileReader`."""

    def header(self, path: Path) -> dict[str, torch.Tensor]:
        """See `TensorFileReader.header`."""
        _, entries = checked_entries(path)
        return {entry.name: torch.empty(entry.shape, dtype=entry.dtype, device="meta") for entry in entries}

    def tensors(self, path: Path) -> dict[str, torch.Tensor]:
        """See `TensorFileReader.tensors`."""
        data_start, entries = checked_entries(path)
        tensors: dict[str, torch.Tensor] = {}
        with path.open("rb") as stream:
            for entry in entries:
                stream.seek(data_start + entry.begin)
                data = bytearray(stream.read(entry.end - entry.begin))
                if len(data) != entry.end - entry.begin:
                    raise _refusal(path, "the file became shorter while it was read", "truncated_file")
                tensors[entry.name] = (
                    torch.frombuffer(data, dtype=entry.dtype).reshape(entry.shape)
                    if data
                    else torch.empty(entry.shape, dtype=entry.dtype)
                )
        return tensors


def checked_entries(path: Path) -> tuple[int, list[TensorEntry]]:
    """Where the data begin, and the tensors in the order in which they lie there, without gap or overlap.

    Raises:
        InvalidAdapter: the header is not that of such a file.
    """
    file_bytes = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(_LENGTH_BYTES)
        if len(prefix) < _LENGTH_BYTES:
            raise _refusal(path, "it ends inside its first eight bytes", "truncated_header")
        (header_bytes,) = struct.unpack("<Q", prefix)
        if header_bytes > MAX_HEADER_BYTES:
            raise _refusal(path, f"its header claims {header_bytes} bytes", "header_too_large")
        if header_bytes > file_bytes - _LENGTH_BYTES:
            raise _refusal(path, f"its header claims {header_bytes} bytes and the file is shorter", "truncated_header")
        header = _parsed(path, stream.read(header_bytes))
    data_start = _LENGTH_BYTES + header_bytes
    entries = [_entry(path, name, fields) for name, fields in header.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    position = 0
    for entry in entries:
        if entry.begin != position:
            raise _refusal(path, f"tensor {entry.name[:160]!r} overlaps another or leaves a gap", "invalid_offsets")
        position = entry.end
    if position != file_bytes - data_start:
        claimed = f"its header describes {position} bytes of data and there are {file_bytes - data_start}"
        raise _refusal(path, claimed, "truncated_file" if position > file_bytes - data_start else "trailing_data")
    return data_start, entries


def _parsed(path: Path, text: bytes) -> dict[str, Any]:
    """The header's tensors; its free text is checked and left out."""
    try:
        header = parse_strictly(text, max_values=_MAX_HEADER_VALUES)
    except ValueError as error:
        raise _refusal(path, f"its header is not JSON ({error})", "invalid_header") from error
    if not isinstance(header, dict):
        raise _refusal(path, "its header is not a JSON object", "invalid_header")
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _refusal(path, f"{_METADATA} maps texts to other things than texts", "invalid_header")
    return header


def _entry(path: Path, name: str, fields: Any) -> TensorEntry:
    """One tensor of the header; Python's integers cannot overflow, so products need only an upper bound."""
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise _refusal(path, f"tensor {name[:160]!r} lacks dtype, shape or data_offsets", "invalid_header")
    dtype = _DTYPES.get(fields["dtype"]) if isinstance(fields["dtype"], str) else None
    if dtype is None:
        raise _refusal(path, f"tensor {name[:160]!r} has the dtype {str(fields['dtype'])[:20]!r}", "unsupported_dtype")
    shape = _integers(fields["shape"])
    if shape is None or len(shape) > _MAX_DIMENSIONS or any(size > _MAX_DIMENSION for size in shape):
        raise _refusal(path, f"tensor {name[:160]!r} has an impossible shape", "invalid_shape")
    if math.prod(max(1, size) for size in shape) > _MAX_ELEMENTS:
        # Empty on paper, since one of its sizes is 0, and still too large for the strides that torch computes.
        raise _refusal(path, f"tensor {name[:160]!r} has an impossible shape", "invalid_shape")
    offsets = _integers(fields["data_offsets"])
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _refusal(path, f"tensor {name[:160]!r} has impossible offsets", "invalid_offsets")
    if math.prod(shape) * dtype.itemsize != offsets[1] - offsets[0]:
        raise _refusal(path, f"the shape of tensor {name[:160]!r} does not fit its offsets", "invalid_offsets")
    return TensorEntry(name=name, dtype=dtype, shape=shape, begin=offsets[0], end=offsets[1])


def _integers(value: Any) -> tuple[int, ...] | None:
    """A list of non-negative integers as a tuple; JSON's `true` is not an integer."""
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        return None
    return tuple(value)


def _refusal(path: Path, reason: str, code: str) -> InvalidAdapter:
    remedy = (
        "Convert the tensors to float32, float16 or bfloat16 before saving." if code == "unsupported_dtype" else _REMEDY
    )
    return InvalidAdapter(f"{path.name} is refused: {reason}.", code=code, remedy=remedy, place=path.name)
