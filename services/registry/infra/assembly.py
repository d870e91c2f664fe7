"""From the files that came in to those that are checked: one file of weights, and a card that is a text.

Whatever the rest of the registry reads, it reads from `adapter_model.safetensors`. Shards are joined here, at the cost
of one copy, after every claim of their headers and of their index was checked.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hilora.errors import InvalidAdapter
from services.registry.adapter_files import (
    CARD_FILE,
    MAX_CARD_BYTES,
    WEIGHTS_FILE,
    WEIGHTS_INDEX_FILE,
    is_shard,
)
from services.registry.infra.safetensors_reader import DTYPE_NAMES, TensorEntry, checked_entries
from services.registry.strict_json import parse_strictly

_MAX_INDEX_BYTES = 16 * 1024 * 1024
_MAX_INDEX_VALUES = 500_000
_COPY_BYTES = 1024 * 1024
_JOINED_FILE = ".joined"


def assemble(folder: Path) -> None:
    """See `FolderAssembler`.

    Raises:
        InvalidAdapter: `missing_shard_index`, `invalid_shard_index`, `missing_shard`, `tensor_twice`, or what
            `HardenedSafetensorsReader` finds in a shard.
    """
    _keep_readable_card(folder / CARD_FILE)
    shards = sorted(file.name for file in folder.iterdir() if is_shard(file.name))
    index = folder / WEIGHTS_INDEX_FILE
    if (folder / WEIGHTS_FILE).exists():
        pass  # one file of weights wins; whatever lies beside it is left over
    elif index.exists():
        _join(folder, shards, _read_index(index))
    elif shards:
        raise _refusal(
            f"{shards[0]} is a part of split weights, and {WEIGHTS_INDEX_FILE} is missing", "missing_shard_index"
        )
    for name in (*shards, WEIGHTS_INDEX_FILE):
        (folder / name).unlink(missing_ok=True)


def _keep_readable_card(card: Path) -> None:
    if not card.exists():
        return
    try:
        is_text = card.stat().st_size <= MAX_CARD_BYTES and "\0" not in card.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        is_text = False
    if not is_text:
        card.unlink()


def _read_index(path: Path) -> dict[str, str]:
    """Shard by tensor name."""
    if path.stat().st_size > _MAX_INDEX_BYTES:
        raise _refusal(f"{path.name} is larger than any honest one", "invalid_shard_index")
    try:
        index: Any = parse_strictly(path.read_bytes(), max_values=_MAX_INDEX_VALUES)
    except ValueError as error:
        raise _refusal(f"{path.name} is not JSON ({error})", "invalid_shard_index") from error
    weight_map: Any = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise _refusal(f"{path.name} has no weight_map", "invalid_shard_index")
    if not all(isinstance(shard, str) and is_shard(shard) for shard in weight_map.values()):
        raise _refusal(f"{path.name} names files that are no shards", "invalid_shard_index")
    return weight_map


def _join(folder: Path, shards: list[str], weight_map: Mapping[str, str]) -> None:
    missing = sorted(set(weight_map.values()) - set(shards))
    if missing:
        raise _refusal(f"{missing[0]} is missing", "missing_shard")
    layouts = {name: checked_entries(folder / name) for name in shards if name in weight_map.values()}
    found: dict[str, str] = {}
    for shard, (_, entries) in layouts.items():
        for entry in entries:
            if entry.name in found:
                raise _refusal(
                    f"tensor {entry.name[:120]!r} lies in {found[entry.name]} and in {shard}", "tensor_twice"
                )
            found[entry.name] = shard
    differing = sorted(name for name in found.keys() | weight_map.keys() if found.get(name) != weight_map.get(name))
    if differing:
        raise _refusal(f"the index is wrong about tensor {differing[0][:120]!r}", "invalid_shard_index")
    _write_joined(folder, layouts)


def _write_joined(folder: Path, layouts: Mapping[str, tuple[int, list[TensorEntry]]]) -> None:
    header: dict[str, dict[str, object]] = {}
    position = 0
    for _, entries in layouts.values():
        for entry in entries:
            num_bytes = entry.end - entry.begin
            header[entry.name] = {
                "dtype": DTYPE_NAMES[entry.dtype],
                "shape": list(entry.shape),
                "data_offsets": [position, position + num_bytes],
            }
            position += num_bytes
    text = json.dumps(header).encode()
    with (folder / _JOINED_FILE).open("wb") as sink:
        sink.write(struct.pack("<Q", len(text)))
        sink.write(text)
        for shard, (data_start, _) in layouts.items():
            with (folder / shard).open("rb") as source:
                # A shard's tensors fill its data part exactly, one after the other: the part is copied as it is.
                source.seek(data_start)
                shutil.copyfileobj(source, sink, _COPY_BYTES)
    # In one step: a killed join leaves shards, never half a file under the name that is read.
    (folder / _JOINED_FILE).replace(folder / WEIGHTS_FILE)


def _refusal(reason: str, code: str) -> InvalidAdapter:
    return InvalidAdapter(
        f"The split weights are refused: {reason}.",
        code=code,
        remedy=f"Send every shard with {WEIGHTS_INDEX_FILE}, or save the adapter as one {WEIGHTS_FILE}.",
        place=WEIGHTS_INDEX_FILE,
    )
