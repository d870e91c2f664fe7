"""Sound inputs, damaged in thousands of ways from one seed: bytes, pieces, numbers and structure.

Blind damage is fast and finds what no one thought of; damage that knows what it damages gets past the first check.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.builders.archives import (
    CONFIG,
    SAMPLES,
    WEIGHTS,
    WEIGHTS_INDEX,
    adapter_files,
    config_bytes,
    safetensors_bytes,
    samples_bytes,
    sharded_weights,
    tar_bytes,
    weights_bytes,
    zip_bytes,
    zstd_bytes,
)

_TOKENS = (
    b"\x00",
    b"\xff",
    b"\xff" * 8,
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b'"',
    b"\\",
    b"\\ud800",
    b"-1",
    b"1e999",
    b"NaN",
    b"null",
    b"true",
    b"0",
    b"9" * 20,
    b"18446744073709551615",
    b"4294967296",
    b"../",
    b"\\..\\",
    b"__metadata__",
    b"PK\x01\x02",
    b"PK\x05\x06",
    b"PK\x06\x07",
    b"\x1f\x8b",
    b"\x28\xb5\x2f\xfd",
    b"x",
    b"L",
    b"S",
    b"\xed\xa0\x80",
    b"\n",
    b"1" * 600,
)
_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    10**300,
    0.5,
    -0.0,
    1e300,
    "",
    "q_proj",
    "../x",
    "(a+)+",
    ".*.*x",
    "a{3}",
    "\ud800",
    "x" * 5000,
    [],
    {},
    [[]],
    [0],
    [1, 2],
    ["q_proj"],
    {"q_proj": 4},
    {"(": 1},
    {"a": {"b": []}},
    "F32",
    "BF16",
    "LORA",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One kind of input."""

    name: str
    seeds: tuple[bytes, ...]
    """Sound ones."""
    codes: frozenset[str]
    """All that its readers say of a bad one."""
    files: Callable[[bytes], Mapping[str, bytes]] | None = None
    """The files of the adapter whose part it is; none for an archive."""


def damaged(source: random.Random, seeds: tuple[bytes, ...]) -> bytes:
    """A sound input after one to six accidents."""
    data = bytearray(source.choice(seeds))
    for _ in range(source.randint(1, 6)):
        at = _place(source, len(data))
        accident = source.randrange(7)
        if accident == 0:
            data[at : at + 1] = bytes([source.randrange(256)])
        elif accident == 1 and data:
            data[min(at, len(data) - 1)] ^= 1 << source.randrange(8)
        elif accident == 2:
            data[at:at] = source.choice(_TOKENS)
        elif accident == 3:
            token = source.choice(_TOKENS)
            data[at : at + len(token)] = token
        elif accident == 4:
            del data[at : at + source.randint(1, 40)]
        elif accident == 5:
            begin = source.randrange(len(data) + 1)
            data[at:at] = data[begin : begin + source.randint(1, 600)]
        elif source.random() < 0.3:
            del data[at:]
    return bytes(data)


def _place(source: random.Random, num_bytes: int) -> int:
    """Anywhere, more often near the beginning, where headers stand, and the end, where lists of contents do."""
    distance = source.randrange(source.choice((64, 600, num_bytes + 1)))
    return min(num_bytes, distance) if source.random() < 0.7 else max(0, num_bytes - distance)


def misshapen(source: random.Random, document: Any) -> Any:
    """A JSON value in which some values and keys are others, moved, doubled or gone."""
    if source.random() < 0.08:
        return source.choice(_VALUES)
    if isinstance(document, dict):
        items = [(key, misshapen(source, value)) for key, value in document.items() if source.random() > 0.03]
        if items and source.random() < 0.1:
            items.append((source.choice(("x", "__metadata__", "\ud800", "r", "a.b")), source.choice(items)[1]))
        return dict(items)
    if isinstance(document, list):
        return [misshapen(source, item) for item in document for _ in range(1 if source.random() > 0.03 else 2)]
    if isinstance(document, int) and not isinstance(document, bool) and source.random() < 0.15:
        return document + source.choice((-1, 1, 8, 2**32, -(2**32)))
    return document


def misshapen_weights(source: random.Random) -> bytes:
    """A file of weights whose header is misshapen, and whose length field may lie."""
    whole = weights_bytes()
    size = int.from_bytes(whole[:8], "little")
    text = json.dumps(misshapen(source, json.loads(whole[8 : 8 + size]))).encode()
    lie = source.choice((-1, 1, 8)) if source.random() < 0.05 else 0
    return safetensors_bytes(text, whole[8 + size :], header_bytes=max(0, len(text) + lie))


def misshapen_config(source: random.Random) -> bytes:
    return json.dumps(misshapen(source, json.loads(config_bytes()))).encode()


def misshapen_samples(source: random.Random) -> bytes:
    lines = [misshapen(source, {"text": "sort these", "note": [1]}) for _ in range(source.randint(1, 6))]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def misshapen_index(source: random.Random) -> bytes:
    return json.dumps(misshapen(source, json.loads(SHARDS[WEIGHTS_INDEX]))).encode()


def misshapen_archive(source: random.Random) -> bytes:
    """An archive of any kind whose members have misshapen names and content."""
    names = [CONFIG, WEIGHTS, SAMPLES, "README.md", "a/x.md", "../x", "x.bin", "x.py", "\\x", "C:x", "tokenizer.json"]
    members = {
        source.choice(names): source.choice((b"", b"{}", b"x" * 2000, bytes(100_000)))
        for _ in range(source.randint(0, 9))
    }
    build = source.choice((zip_bytes, tar_bytes, lambda files: tar_bytes(files, compression="gz"), _tar_zst))
    return build(members) if source.random() < 0.5 else damaged(source, (build(members),))


def _tar_zst(members: Mapping[str, bytes]) -> bytes:
    return zstd_bytes(tar_bytes(members))


SHARDS = sharded_weights(weights_bytes(), num_shards=2)
_FILES = adapter_files()

_HEADER_CODES = {
    "truncated_header",
    "header_too_large",
    "invalid_header",
    "unsupported_dtype",
    "invalid_shape",
    "invalid_offsets",
    "truncated_file",
    "trailing_data",
}
_CONFIG_CODES = {
    "invalid_adapter_config",
    "unsupported_peft_type",
    "unsupported_adapter_feature",
    "unknown_config_field",
    "unsupported_bias",
    "base_changing_init",
    "unknown_init",
    "rank_mismatch",
    "unsupported_module_pattern",
    "unpaired_factor",
    "no_effective_module",
    "unexpected_tensor",
    "unsupported_target_parameter",
    "too_many_modules",
}
_WEIGHTS_CODES = _HEADER_CODES | {
    "unexpected_tensor",
    "unpaired_factor",
    "duplicate_factor",
    "factor_not_a_matrix",
    "rank_mismatch",
    "unknown_target_module",
    "adapter_shape_mismatch",
    "non_finite_weights",
    "no_effective_module",
    "rank_too_large",
    "unsupported_target_parameter",
}
_ARCHIVE_CODES = {
    "unsafe_path",
    "link_in_archive",
    "special_file_in_archive",
    "unreadable_archive",
    "zip_bomb",
    "archive_too_large",
    "too_many_members",
    "zip64_archive",
    "unsupported_compression",
    "encrypted_archive",
    "nested_archive",
    "duplicate_member",
    "zstd_window_too_large",
    "pickle_refused",
    "unexpected_file",
}

HEADER = Target(
    name="header",
    seeds=(weights_bytes(), weights_bytes(seed=1)),
    codes=frozenset(_WEIGHTS_CODES),
    files=lambda data: {**_FILES, WEIGHTS: data},
)
CONFIG_FILE = Target(
    name="config",
    seeds=(config_bytes(), config_bytes(rank_pattern={"q_proj": 4}, alpha_pattern={r"layers\.0.*": 8})),
    codes=frozenset(_CONFIG_CODES),
    files=lambda data: {**_FILES, CONFIG: data},
)
SAMPLES_FILE = Target(
    name="samples",
    seeds=(samples_bytes(), samples_bytes(*(f"text {number} ä\n" for number in range(9)))),
    codes=frozenset({"empty_samples", "invalid_samples", "too_many_samples"}),
    files=lambda data: {**_FILES, SAMPLES: data},
)
INDEX = Target(
    name="index",
    seeds=(SHARDS[WEIGHTS_INDEX],),
    codes=frozenset({"invalid_shard_index", "missing_shard", "tensor_twice"}) | _HEADER_CODES,
    files=lambda data: {**SHARDS, WEIGHTS_INDEX: data},
)
ARCHIVE = Target(
    name="archive",
    seeds=(zip_bytes(_FILES), tar_bytes(_FILES), tar_bytes(_FILES, compression="gz"), _tar_zst(_FILES)),
    codes=frozenset(_ARCHIVE_CODES),
)
MISSHAPEN: Mapping[str, Callable[[random.Random], bytes]] = {
    HEADER.name: misshapen_weights,
    CONFIG_FILE.name: misshapen_config,
    SAMPLES_FILE.name: misshapen_samples,
    INDEX.name: misshapen_index,
    ARCHIVE.name: misshapen_archive,
}


def inputs(target: Target, count: int, *, seed: int) -> Iterator[bytes]:
    """So many inputs, in turn damaged blindly and misshapen."""
    source = random.Random(seed)
    for number in range(count):
        yield MISSHAPEN[target.name](source) if number % 2 else damaged(source, target.seeds)
