"""Reads adapters from object stores through fsspec: below the prefixes that the operator allows, and nowhere else.

The stores' own packages are optional (`hilora-serve[s3]` brings s3fs; gcsfs and adlfs are found if they are installed)
and read the operator's credentials from where they always do: AWS_*, GOOGLE_APPLICATION_CREDENTIALS, AZURE_*. A client
that may use the registry must not read with those what it likes, so an allow-list decides first; and a reference is
never handed to fsspec as a URL, whose chains and options would be the client's to choose.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hilora.errors import HiloraError, InvalidAdapter, InvalidInput, Unavailable
from services.registry.adapter_files import (
    CARD_FILE,
    CONFIG_FILE,
    MAX_CARD_BYTES,
    SAMPLES_FILE,
    WEIGHTS_FILE,
    WEIGHTS_INDEX_FILE,
    archive_stem,
    files_to_fetch,
    is_shard,
)
from services.registry.infra.transfer import COPY_BYTES, FetchLimits, Transfer, oversize
from services.registry.ports import ArchiveUnpacker, ProgressListener
from services.registry.strict_json import parse_strictly

_PLACE = "source.object"
_ARCHIVE_FILE = ".archive"
_PICKLED_WEIGHTS = "adapter_model.bin"
_MAX_INDEX_BYTES = 16 * 1024 * 1024
_MAX_INDEX_VALUES = 500_000
_MAX_SHARDS = 64
_REFERENCE = re.compile(r"(?P<scheme>[a-z0-9]+)://(?P<path>[A-Za-z0-9][\w.-]*(?:/[\w.@=+,!-]+)*)/?", re.ASCII)

STORE_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "s3": {"config_kwargs": {"connect_timeout": 10, "read_timeout": 30, "retries": {"max_attempts": 3}}},
    "gs": {},
    "az": {},
}
"""What may be asked for: options of fsspec's file system, by scheme."""


class ObjectStoreSource:
    """See `AdapterSource`; a reference is `scheme://bucket/folder` or the URL of an archive.

    Args:
        allowed_prefixes: URLs such as `s3://bucket/adapters`; what lies at or below one of them may be read. None
            switches this source off.
        limits: on the sum of an adapter's files, or on its archive, checked before anything is read; and on the time.
        unpack: takes files out of an archive.
        store_options: see `STORE_OPTIONS`.

    Raises:
        InvalidInput: `invalid_setting`, if a prefix is no such URL.
    """

    def __init__(
        self,
        *,
        allowed_prefixes: Sequence[str],
        limits: FetchLimits,
        unpack: ArchiveUnpacker,
        store_options: Mapping[str, Mapping[str, Any]] = STORE_OPTIONS,
    ) -> None:
        self._store_options = store_options
        self._limits = limits
        self._unpack = unpack
        self._allowed = tuple(self._checked_prefix(prefix) for prefix in allowed_prefixes)

    def check(self, reference: str) -> None:
        """See `AdapterSource.check`.

        Raises:
            InvalidInput: `object_store_not_allowed`, `invalid_object_reference`, or `object_store_not_installed`.
        """
        scheme, _ = self._parsed(reference)
        if not any(_is_below(reference.rstrip("/"), prefix) for prefix in self._allowed):
            raise InvalidInput(
                f"The registry may not read {reference[:200]!r}.",
                code="object_store_not_allowed",
                remedy="Upload the files, or have the operator add the prefix to "
                "HILORA_REGISTRY_ALLOWED_OBJECT_STORES.",
                place=_PLACE,
            )
        _file_system_class(scheme)

    def fetch(self, reference: str, folder: Path, *, on_progress: ProgressListener) -> str:
        """See `AdapterSource.fetch`; returns `<url>@<version or ETag of its main file>`."""
        self.check(reference)
        scheme, path = self._parsed(reference)
        transfer = Transfer(self._limits, on_progress=on_progress, place=_PLACE)
        try:
            store = _file_system_class(scheme)(**self._store_options[scheme])
            store.invalidate_cache()  # instances are shared, and remember listings
            if archive_stem(path):
                version = self._fetch_archive(store, path, folder, transfer)
            else:
                version = self._fetch_folder(store, path, folder, transfer)
        except HiloraError:
            raise
        except Exception as error:
            # Every store's package raises its own classes, besides OSError.
            raise _translated(error, reference) from error
        return f"{reference.rstrip('/')}@{version}"

    def _fetch_archive(self, store: Any, path: str, folder: Path, transfer: Transfer) -> str:
        info = _info(store, path)
        if info is None:
            raise FileNotFoundError(path)
        transfer.expect(_size(info, self._limits))
        archive = folder / _ARCHIVE_FILE
        try:
            _copy(store, path, archive, transfer)
            self._unpack(archive, folder)
        finally:
            archive.unlink(missing_ok=True)
        return _version(info)

    def _fetch_folder(self, store: Any, path: str, folder: Path, transfer: Transfer) -> str:
        # Asked for by name: a prefix may hold millions of objects, and listing them is the client's to provoke.
        known = (CONFIG_FILE, WEIGHTS_FILE, WEIGHTS_INDEX_FILE, _PICKLED_WEIGHTS, SAMPLES_FILE, CARD_FILE)
        infos = {name: info for name in known if (info := _info(store, f"{path}/{name}")) is not None}
        if WEIGHTS_FILE not in infos and WEIGHTS_INDEX_FILE in infos:
            for name in self._shards(store, f"{path}/{WEIGHTS_INDEX_FILE}", infos[WEIGHTS_INDEX_FILE]):
                info = _info(store, f"{path}/{name}")
                if info is not None:
                    infos[name] = info
        if CARD_FILE in infos and _size(infos[CARD_FILE], self._limits) > MAX_CARD_BYTES:
            del infos[CARD_FILE]
        if not infos:
            raise FileNotFoundError(path)
        wanted = files_to_fetch(infos, place=_PLACE)
        transfer.expect(sum(_size(infos[name], self._limits) for name in wanted))
        for name in wanted:
            _copy(store, f"{path}/{name}", folder / name, transfer)
        return _version(infos[wanted[1]])

    def _shards(self, store: Any, path: str, info: Mapping[str, Any]) -> list[str]:
        """The shards that an index names; whether it is right is seen once they are here."""
        if _size(info, self._limits) > _MAX_INDEX_BYTES:
            raise _invalid_index("it is larger than any honest one")
        try:
            content = store.cat_file(path, start=0, end=_MAX_INDEX_BYTES)
            index: Any = parse_strictly(content, max_values=_MAX_INDEX_VALUES)
            names = set(index["weight_map"].values())
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise _invalid_index("it has no weight_map") from error
        if not 0 < len(names) <= _MAX_SHARDS or not all(isinstance(name, str) and is_shard(name) for name in names):
            raise _invalid_index(f"it does not name 1 to {_MAX_SHARDS} shards")
        return sorted(names)

    def _parsed(self, reference: str) -> tuple[str, str]:
        match = _REFERENCE.fullmatch(reference)
        has_dots = match is not None and {".", ".."} & set(match["path"].split("/"))
        if match is None or has_dots or match["scheme"] not in self._store_options:
            raise InvalidInput(
                f"{reference[:200]!r} names nothing in an object store.",
                code="invalid_object_reference",
                remedy=f"Write {' or '.join(f'{scheme}://' for scheme in self._store_options)}bucket/folder, with "
                "letters, digits and - _ . @ = + , ! in its names.",
                place=_PLACE,
            )
        return match["scheme"], match["path"]

    def _checked_prefix(self, prefix: str) -> str:
        try:
            self._parsed(prefix)
        except InvalidInput as error:
            raise InvalidInput(
                f"{prefix!r} is no prefix of an object store.",
                code="invalid_setting",
                remedy="Write s3://bucket or s3://bucket/folder.",
                place="HILORA_REGISTRY_ALLOWED_OBJECT_STORES",
            ) from error
        return prefix.rstrip("/")


def _is_below(reference: str, prefix: str) -> bool:
    # With the slash: `s3://bucket/a` does not open `s3://bucket/ab`.
    return reference == prefix or reference.startswith(f"{prefix}/")


def _file_system_class(scheme: str) -> Any:
    import fsspec

    try:
        return fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise InvalidInput(
            f"This registry has no client for {scheme}:// ({error}).",
            code="object_store_not_installed",
            remedy="Have the operator install it: hilora-serve[s3] for s3://, gcsfs for gs://, adlfs for az://.",
            place=_PLACE,
        ) from error


def _info(store: Any, path: str) -> Mapping[str, Any] | None:
    """What a store says about an object; `None` if there is none of this name."""
    try:
        info: Mapping[str, Any] = store.info(path)
    except FileNotFoundError:
        return None
    return info if info.get("type") == "file" else None


def _size(info: Mapping[str, Any], limits: FetchLimits) -> int:
    size = info.get("size")
    if not isinstance(size, int):
        raise oversize(limits.max_bytes, place=_PLACE)  # a store that does not say could send for ever
    return size


def _version(info: Mapping[str, Any]) -> str:
    """What tells this content of an object from an earlier one, as far as the store says."""
    for key in ("VersionId", "version_id", "generation", "ETag", "etag", "created", "mtime"):
        value = info.get(key)
        if value is not None and str(value) != "null":
            return str(value).strip('"')
    return "unversioned"


def _copy(store: Any, path: str, target: Path, transfer: Transfer) -> None:
    # Opened once: where a store has ETags, every piece is asked for under the one that was seen at the opening.
    with store.open(path, "rb", block_size=4 * COPY_BYTES) as source, target.open("wb") as sink:
        while data := source.read(COPY_BYTES):
            transfer.count(len(data))
            sink.write(data)


def _translated(error: Exception, reference: str) -> HiloraError:
    if isinstance(error, FileNotFoundError):
        return InvalidInput(
            f"There is nothing at {reference[:200]}.",
            code="object_not_found",
            remedy="Give the folder that holds adapter_config.json, or an archive.",
            place=_PLACE,
        )
    if isinstance(error, PermissionError) or type(error).__name__ in {"NoCredentialsError", "DefaultCredentialsError"}:
        return InvalidInput(
            f"The registry's credentials do not open {reference[:200]}.",
            code="object_access_denied",
            remedy="Have the operator give the registry a role or key that may read it, or upload the files.",
            place=_PLACE,
        )
    return Unavailable(
        f"The object store does not answer for {reference[:200]}: {type(error).__name__}: {str(error)[:200]}",
        code="object_store_unavailable",
        remedy="It is tried again; otherwise upload the files.",
        place=_PLACE,
    )


def _invalid_index(reason: str) -> InvalidAdapter:
    return InvalidAdapter(
        f"{WEIGHTS_INDEX_FILE} is refused: {reason}.",
        code="invalid_shard_index",
        remedy="Save the adapter as one file of weights.",
        place=WEIGHTS_INDEX_FILE,
    )
