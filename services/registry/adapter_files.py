"""Which files make an adapter, and which names are refused wherever they come from."""

from __future__ import annotations

from pathlib import PurePosixPath

from hilora.errors import InvalidAdapter

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
SAMPLES_FILE = "samples.jsonl"
ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE, SAMPLES_FILE)
"""The only files that are ever read; they stay under these names in the staging folder."""

_PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz"})
# What trainers and the hub leave beside an adapter; passed over unread.
_HARMLESS_SUFFIXES = frozenset({".md", ".txt", ".json", ".jinja", ".model", ".yaml", ".yml"})
_HARMLESS_NAMES = frozenset({".gitattributes", ".gitignore", ".ds_store", "license"})


def is_wanted(file_name: str) -> bool:
    """Whether a file of this name is one that makes an adapter.

    Args:
        file_name: the last segment of a path.

    Returns:
        `False` for a harmless companion, which is to be passed over.

    Raises:
        InvalidAdapter: `pickle_refused`, or `unexpected_file`.
    """
    if file_name in ADAPTER_FILES:
        return True
    suffix = PurePosixPath(file_name.lower()).suffix
    if suffix in _PICKLE_SUFFIXES:
        raise pickle_refused(file_name)
    if suffix in _HARMLESS_SUFFIXES or file_name.lower() in _HARMLESS_NAMES:
        return False
    raise InvalidAdapter(
        f"{file_name[:80]!r} is not a file of an adapter.",
        code="unexpected_file",
        remedy=f"Send {CONFIG_FILE}, {WEIGHTS_FILE} and {SAMPLES_FILE} only.",
        place=file_name[:80],
    )


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
