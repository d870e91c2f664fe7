"""Which files make an adapter, and which names are refused wherever they come from."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from hilora.errors import InvalidAdapter

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
WEIGHTS_INDEX_FILE = "adapter_model.safetensors.index.json"
"""Says which tensor lies in which shard, where the weights are split into several files."""
SAMPLES_FILE = "samples.jsonl"
CARD_FILE = "README.md"
"""The model card: a text about the adapter. It is kept beside the files, and nothing in it is ever executed."""
ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE, WEIGHTS_INDEX_FILE, SAMPLES_FILE, CARD_FILE)
"""With the shards the only files that are ever read; they stay under these names in the staging folder."""

MAX_CARD_BYTES = 512 * 1024
"""A longer card is left out: it is a description, and no reason to refuse an adapter."""

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar", ".zip")
"""How the names of archives end; what an archive is, its content says."""

_SHARD = re.compile(r"adapter_model-\d{5}-of-\d{5}\.safetensors", re.ASCII)
_PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz"})
# What trainers and the hub leave beside an adapter; passed over unread.
_HARMLESS_SUFFIXES = frozenset({".md", ".txt", ".json", ".jinja", ".model", ".yaml", ".yml"})
_HARMLESS_NAMES = frozenset({".gitattributes", ".gitignore", ".ds_store", "license"})


def is_adapter_file(file_name: str) -> bool:
    """Whether a file of this name is one that makes an adapter. Refuses nothing."""
    return file_name in ADAPTER_FILES or is_shard(file_name)


def is_shard(file_name: str) -> bool:
    """Whether this is the name of one part of weights that are split into several files."""
    return _SHARD.fullmatch(file_name) is not None


def is_wanted(file_name: str) -> bool:
    """Whether a file of this name is one that makes an adapter.

    Args:
        file_name: the last segment of a path.

    Returns:
        `False` for a harmless companion, which is to be passed over.

    Raises:
        InvalidAdapter: `pickle_refused`, or `unexpected_file`.
    """
    if is_adapter_file(file_name):
        return True
    suffix = PurePosixPath(file_name.lower()).suffix
    if suffix in _PICKLE_SUFFIXES:
        raise pickle_refused(file_name)
    if suffix in _HARMLESS_SUFFIXES or file_name.lower() in _HARMLESS_NAMES:
        return False
    raise InvalidAdapter(
        f"{file_name[:80]!r} is not a file of an adapter.",
        code="unexpected_file",
        remedy=f"Send {CONFIG_FILE}, {WEIGHTS_FILE}, {SAMPLES_FILE} and {CARD_FILE} only.",
        place=file_name[:80],
    )


def files_to_fetch(names: Iterable[str], *, place: str) -> tuple[str, ...]:
    """Which files of a place make the adapter there; one file of weights wins over shards, as in PEFT.

    Args:
        names: all files of the place.
        place: what an error points to.

    Raises:
        InvalidAdapter: `pickle_refused` if the weights are there as a pickle only, `not_an_adapter` if config or
            weights are missing.
    """
    present = set(names)
    shards = sorted(name for name in present if is_shard(name))
    if WEIGHTS_FILE in present:
        weights = [WEIGHTS_FILE]
    elif WEIGHTS_INDEX_FILE in present and shards:
        weights = [WEIGHTS_INDEX_FILE, *shards]
    else:
        weights = []
    if CONFIG_FILE not in present or not weights:
        for name in sorted(present):
            if name.startswith("adapter_model.") and name not in ADAPTER_FILES:
                is_wanted(name)  # says what to do with a pickle
        raise InvalidAdapter(
            f"There is no {CONFIG_FILE} together with {WEIGHTS_FILE}, or its shards and their index.",
            code="not_an_adapter",
            remedy="Give a place that holds what PEFT's save_pretrained or push_to_hub wrote.",
            place=place,
        )
    return (CONFIG_FILE, *weights, *(name for name in (SAMPLES_FILE, CARD_FILE) if name in present))


def archive_stem(file_name: str) -> str:
    """The name of an archive without what says that it is one; empty if nothing does."""
    for suffix in ARCHIVE_SUFFIXES:
        if file_name.lower().endswith(suffix):
            return file_name[: -len(suffix)]
    return ""


def pickle_refused(file_name: str) -> InvalidAdapter:
    """The refusal of a format that runs code when it is read."""
    return InvalidAdapter(
        f"{file_name[:80]!r} is a pickle, and reading one runs the code inside.",
        code="pickle_refused",
        remedy=(
            "Convert the adapter: load it with PEFT where you trust it, and call "
            f"save_pretrained(..., safe_serialization=True); then send {WEIGHTS_FILE} and leave other files out."
        ),
        place=file_name[:80],
    )
