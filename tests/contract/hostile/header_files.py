"""Weights from hell: headers of safetensors files that lie, and files that are none. Code by case, and the bytes.

Cases that are named after an advisory or a report repeat its class, not its bytes.
"""

from __future__ import annotations

import io
import json
import math
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import torch

from tests.builders.adapters import Q_PROJ
from tests.builders.archives import safetensors_bytes, weights_bytes
from tests.contract.hostile.guard import ACCEPTED

LORA_A = f"base_model.model.{Q_PROJ}.lora_A.weight"
PAIR = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}

Files = Callable[[], bytes]


def one_tensor(**changes: object) -> Files:
    """A file of one tensor of 16 bytes, of which some fields are others."""
    return lambda: safetensors_bytes({LORA_A: {**PAIR, **changes}}, bytes(16))


def header(text: bytes, data: bytes = bytes(16)) -> Files:
    return lambda: safetensors_bytes(text, data)


def length(claimed: int) -> Files:
    return lambda: safetensors_bytes({LORA_A: PAIR}, bytes(16), header_bytes=claimed)


def tensors(*layouts: Mapping[str, Any], size: int) -> Files:
    return lambda: safetensors_bytes(
        {f"t{place}": {**PAIR, **layout} for place, layout in enumerate(layouts)}, bytes(size)
    )


def described(text: bytes) -> Files:
    """A file whose one tensor is described by these bytes of JSON."""
    return header(b'{"a": {"dtype": "F32", ' + text + b"}}")


def with_metadata(metadata: object, *, data: bytes = b"") -> bytes:
    whole = weights_bytes()
    size = int.from_bytes(whole[:8], "little")
    fields = {"__metadata__": metadata, **json.loads(whole[8 : 8 + size])}
    return safetensors_bytes(fields, whole[8 + size :] + data)


def empty_tensors(count: int) -> bytes:
    # By hand: of a million, json takes five seconds.
    tensors = ",".join(f'"t{n}":{{"dtype":"F16","shape":[0],"data_offsets":[0,0]}}' for n in range(count))
    return safetensors_bytes(f"{{{tensors}}}".encode())


def torch_checkpoint() -> bytes:
    buffer = io.BytesIO()
    torch.save({LORA_A: torch.ones(2, 2)}, buffer)
    return buffer.getvalue()


class _Runs:
    """What a pickle of it would do, were it loaded."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return print, ("a pickle was loaded",)


def layout(shapes: Mapping[str, list[int]]) -> bytes:
    """A file of half-precision zeros with these shapes."""
    fields: dict[str, dict[str, object]] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        fields[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    return safetensors_bytes(fields, bytes(end))


def shared_rank_bomb() -> bytes:
    """RaSA: two shared factors of half a megabyte, which expand into each of 600 layers: 3 GB of float64."""
    shapes = {"base_model.rasa_shared_A.q.weight": [15, 20_000], "base_model.rasa_shared_B.q.weight": [20_000, 15]}
    for place in range(600):
        path = f"base_model.model.layers.{place}.q"
        shapes |= {
            f"{path}.rasa_A.weight": [0, 20_000],
            f"{path}.rasa_B.weight": [20_000, 0],
            f"{path}.rasa_mixing.weight": [15],
        }
    return layout(shapes)


def expert_bomb() -> bytes:
    """Stacks of 4096 experts without a column, which cost no byte: 1.2 million modules."""
    shapes: dict[str, list[int]] = {}
    for place in range(300):
        path = f"base_model.model.layers.{place}.mlp.experts"
        shapes |= {f"{path}.lora_A.weight": [4096, 0], f"{path}.lora_B.weight": [0, 4096]}
    return layout(shapes)


HEADERS: dict[str, tuple[str, Files]] = {
    # the length field
    "no bytes": ("truncated_header", lambda: b""),
    "seven bytes": ("truncated_header", lambda: bytes(7)),
    "length of 2^64-1": ("header_too_large", length(2**64 - 1)),
    "length of 2^63, negative if signed": ("header_too_large", length(2**63)),
    "length of zero": ("invalid_header", length(0)),
    "length one byte short": ("invalid_header", lambda: safetensors_bytes(b'{"a": {}}', header_bytes=8)),
    "length past the end": ("truncated_header", lambda: safetensors_bytes(b"{}", header_bytes=3)),
    "length that takes the data in": (
        "invalid_header",
        lambda: safetensors_bytes({LORA_A: PAIR}, bytes(16), header_bytes=len(json.dumps({LORA_A: PAIR})) + 8),
    ),
    # what is no JSON object
    "not JSON": ("invalid_header", header(b"not json")),
    "a list": ("invalid_header", header(b"[1, 2]")),
    "a text": ("invalid_header", header(b'"a"')),
    "null": ("invalid_header", header(b"null")),
    "NaN": ("invalid_header", described(b'"shape": [NaN], "data_offsets": [0, 16]')),
    "invalid UTF-8": ("invalid_header", header(b'{"\xff\xfe": {}}')),
    "overlong UTF-8": ("invalid_header", header(b'{"\xc0\xaf": {}}')),
    "a surrogate in UTF-8": ("invalid_header", header(b'{"\xed\xa0\x80": {}}')),
    "half a character": (
        "invalid_header",
        header(rb'{"\ud800": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}'),
    ),
    "UTF-16": ("invalid_header", header(json.dumps({LORA_A: PAIR}).encode("utf-16"))),
    "byte order mark": ("invalid_header", header(b"\xef\xbb\xbf" + json.dumps({LORA_A: PAIR}).encode())),
    "NUL after the object": ("invalid_header", header(json.dumps({LORA_A: PAIR}).encode() + b"\0")),
    "200,000 open brackets": ("invalid_header", header(b"[" * 200_000)),
    "900 nested objects": ("invalid_header", header(b'{"a":' * 900 + b"1" + b"}" * 900)),
    "5 million empty lists": ("invalid_header", header(b'{"a":[' + b"[]," * 5_000_000 + b"[]]}")),
    "an integer of 5000 digits": (
        "invalid_header",
        described(b'"shape": [4], "data_offsets": [0, ' + b"9" * 5000 + b"]"),
    ),
    # keys twice
    "a tensor twice": ("invalid_header", header(b'{"a": {}, "a": {}}')),
    "a tensor twice, once escaped": ("invalid_header", header(rb'{"a": {}, "\u0061": {}}')),
    "offsets twice": ("invalid_header", described(b'"shape": [4], "data_offsets": [0, 16], "data_offsets": [0, 8]')),
    # fields
    "a field too few": ("invalid_header", described(b'"shape": [4]')),
    "a field too many": ("invalid_header", described(b'"shape": [4], "data_offsets": [0, 16], "strides": [1]')),
    "a tensor that is a list": ("invalid_header", header(b'{"a": ["F32", [4], [0, 16]]}')),
    "I32": ("unsupported_dtype", one_tensor(dtype="I32")),
    "F8": ("unsupported_dtype", one_tensor(dtype="F8_E4M3")),
    "dtype in lower case": ("unsupported_dtype", one_tensor(dtype="f32")),
    "dtype that is a list": ("unsupported_dtype", one_tensor(dtype=["F32"])),
    "dtype of 100 KB": ("unsupported_dtype", one_tensor(dtype="F" * 100_000)),
    # shapes
    "shape.negative": ("invalid_shape", one_tensor(shape=[-2, -2])),
    "shape.boolean": ("invalid_shape", one_tensor(shape=[True, 4])),
    "shape.float": ("invalid_shape", one_tensor(shape=[2.0, 2])),
    "shape.number": ("invalid_shape", one_tensor(shape=4)),
    "shape.nine dimensions": ("invalid_shape", one_tensor(shape=[1] * 8 + [4])),
    "shape.dimension of 2^63": ("invalid_shape", one_tensor(shape=[2**63, 2])),
    "shape.product 2^64 wraps to 0, mlx 3364": ("invalid_shape", one_tensor(shape=[2**32, 2**32], data_offsets=[0, 0])),
    "shape.product wraps to the right size, stable-diffusion.cpp 1876": (
        "invalid_shape",
        one_tensor(shape=[2**31, 2**31, 2, 2]),
    ),
    "shape.empty, yet larger than memory": ("invalid_shape", one_tensor(shape=[2**31, 2**31, 2**31, 0])),
    "shape.larger than its bytes, onnxruntime 27518": ("invalid_offsets", one_tensor(shape=[4, 2**30])),
    "shape.smaller than its bytes": ("invalid_offsets", one_tensor(shape=[1])),
    # offsets
    "offsets.negative": ("invalid_offsets", one_tensor(data_offsets=[-16, 0])),
    "offsets.float": ("invalid_offsets", one_tensor(data_offsets=[0.0, 16.0])),
    "offsets.three": ("invalid_offsets", one_tensor(data_offsets=[0, 8, 16])),
    "offsets.reversed": ("invalid_offsets", one_tensor(data_offsets=[16, 0])),
    "offsets.past 64 bits": ("invalid_offsets", one_tensor(data_offsets=[2**64, 2**64 + 16])),
    "offsets.overlap": ("invalid_offsets", tensors({}, {"data_offsets": [8, 24]}, size=24)),
    "offsets.same bytes twice": ("invalid_offsets", tensors({}, {}, size=16)),
    "offsets.gap at the beginning": ("invalid_offsets", tensors({"data_offsets": [8, 24]}, size=24)),
    "offsets.gap between": ("invalid_offsets", tensors({}, {"data_offsets": [32, 48]}, size=48)),
    "offsets.past the end, openasr 73": ("truncated_file", tensors({}, {"data_offsets": [16, 32]}, size=16)),
    "offsets.an empty tensor inside another": (
        "invalid_offsets",
        tensors({}, {"shape": [0], "data_offsets": [8, 8]}, size=16),
    ),
    "one byte missing": ("truncated_file", lambda: weights_bytes()[:-1]),
    "one byte too many": ("trailing_data", lambda: weights_bytes() + b"\0"),
    "an archive behind the data": ("trailing_data", lambda: weights_bytes() + b"PK\x03\x04" + bytes(60)),
    # metadata
    "metadata.a list": ("invalid_header", lambda: with_metadata([1])),
    "metadata.numbers": ("invalid_header", lambda: with_metadata({"format": 1})),
    "metadata.a tensor hidden there": ("invalid_header", lambda: with_metadata({"t": PAIR}, data=bytes(16))),
    "metadata.a description that is a text": (
        "trailing_data",
        lambda: with_metadata({"t": json.dumps(PAIR)}, data=bytes(16)),
    ),
    "metadata.3 MB": (ACCEPTED, lambda: with_metadata({"note": "x" * 3_000_000})),
    "metadata.code": (ACCEPTED, lambda: with_metadata({"auto_map": "__import__('os').abort()"})),
    # size
    "a million empty tensors": ("header_too_large", lambda: empty_tensors(1_000_000)),
    "200,000 empty tensors": ("invalid_header", lambda: empty_tensors(200_000)),
    "100,000 empty tensors": ("unexpected_tensor", lambda: empty_tensors(100_000)),
    "a name of 3 MB": ("unexpected_tensor", lambda: safetensors_bytes({"x" * 3_000_000: PAIR}, bytes(16))),
    "a name of 1 MB of an unknown dtype": (
        "unsupported_dtype",
        lambda: safetensors_bytes({"x" * 1_000_000: {**PAIR, "dtype": "I8"}}, bytes(16)),
    ),
    "a name of 1 MB in a gap": (
        "invalid_offsets",
        lambda: safetensors_bytes({"x" * 1_000_000: {**PAIR, "data_offsets": [8, 24]}}, bytes(24)),
    ),
    "a name that is a path": ("unexpected_tensor", lambda: safetensors_bytes({"../../etc/passwd": PAIR}, bytes(16))),
    # other files under this name
    "CVE-2025-32434, CVE-2025-24357: a pickle": ("header_too_large", lambda: pickle.dumps(_Runs())),
    "a pickle of protocol 0": ("header_too_large", lambda: pickle.dumps(_Runs(), protocol=0)),
    "a torch checkpoint": ("header_too_large", torch_checkpoint),
    "a GGUF file": ("header_too_large", lambda: b"GGUF\x03\0\0\0" + b"\x01" * 64),
    "a NumPy file": ("header_too_large", lambda: b"\x93NUMPY\x01\x00v\x00" + b" " * 118),
}
"""By case: the code of the refusal, and the content of adapter_model.safetensors."""

BOMBS: dict[str, tuple[str, dict[str, object], Files]] = {
    "RaSA: shared ranks expand into 600 layers": (
        "unknown_target_module",
        {"peft_type": "RASA", "rasa_k": 1},
        shared_rank_bomb,
    ),
    "stacked experts without a column": (
        "too_many_modules",
        {"r": 1, "target_modules": [], "target_parameters": ["gate_up_proj"]},
        expert_bomb,
    ),
}
"""Sound files whose expansion is not: code, changes of the config, and the weights."""
