"""Reads adapters from the HuggingFace Hub: two or three files of one commit, nothing else of a repository.

`HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME` and `HF_HUB_OFFLINE` are honoured by the library itself.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from hilora.errors import HiloraError, InvalidInput, Unavailable
from services.registry.adapter_files import ADAPTER_FILES, CONFIG_FILE, WEIGHTS_FILE, is_wanted

_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[\w][\w./-]{0,127}", re.ASCII)
_TIMEOUT_SECONDS = 20.0


class HubSource:
    """See `AdapterSource`; a reference is `owner/name` or `owner/name@revision`.

    Args:
        is_allowed: whether the operator lets adapters come from the hub.
        max_bytes: limit on the sum of an adapter's files, checked before anything is downloaded.
    """

    def __init__(self, *, is_allowed: bool, max_bytes: int) -> None:
        self._is_allowed = is_allowed
        self._max_bytes = max_bytes

    def check(self, reference: str) -> None:
        """See `AdapterSource.check`. Raises InvalidInput: `hub_not_allowed` or `invalid_hub_reference`."""
        if not self._is_allowed:
            raise InvalidInput(
                "This registry takes no adapters from the hub.",
                code="hub_not_allowed",
                remedy="Upload the files, or have the operator set HILORA_REGISTRY_ALLOW_HUB=true.",
                place="source.hub",
            )
        _parse(reference)

    def fetch(self, reference: str, folder: Path) -> str:
        """See `AdapterSource.fetch`; returns `owner/name@<40-digit commit>`."""
        self.check(reference)
        repo, revision = _parse(reference)
        from huggingface_hub import HfApi, hf_hub_download  # a second of import that uploads need not pay

        api = HfApi()
        try:
            info = api.model_info(repo, revision=revision, files_metadata=True, timeout=_TIMEOUT_SECONDS)
            commit = str(info.sha)
            for name in self._chosen(repo, info.siblings or []):
                cached = hf_hub_download(repo, name, revision=commit, local_dir=folder / ".hub")
                Path(cached).replace(folder / name)
        except HiloraError:
            raise
        except Exception as error:
            # The library raises its own classes, those of two HTTP libraries and OSError; all become two of ours.
            raise _translated(error, reference) from error
        finally:
            shutil.rmtree(folder / ".hub", ignore_errors=True)
        return f"{repo}@{commit}"

    def _chosen(self, repo: str, siblings: list[Any]) -> list[str]:
        sizes = {str(file.rfilename): file.size for file in siblings}
        chosen = [name for name in ADAPTER_FILES if name in sizes]
        if WEIGHTS_FILE not in chosen or CONFIG_FILE not in chosen:
            for name in sizes:
                if name.startswith("adapter_model."):
                    is_wanted(name)  # says what to do with a pickle
            raise InvalidInput(
                f"{repo} holds no {CONFIG_FILE} with {WEIGHTS_FILE}.",
                code="not_an_adapter",
                remedy="Give a repository that PEFT's save_pretrained or push_to_hub made.",
                place="source.hub",
            )
        unknown = [name for name in chosen if sizes[name] is None]
        if unknown or sum(sizes[name] for name in chosen) > self._max_bytes:
            raise InvalidInput(
                f"The adapter in {repo} is larger than {self._max_bytes} bytes, or its size is not stated.",
                code="upload_too_large",
                remedy="Reduce the rank, or have the operator raise HILORA_REGISTRY_MAX_UPLOAD_BYTES.",
                place="source.hub",
            )
        return chosen


def _parse(reference: str) -> tuple[str, str | None]:
    repo, separator, revision = reference.partition("@")
    is_sound = _REPO.fullmatch(repo) and (not separator or _REVISION.fullmatch(revision)) and ".." not in reference
    if not is_sound:
        raise InvalidInput(
            f"{reference[:200]!r} names no repository of the hub.",
            code="invalid_hub_reference",
            remedy="Write owner/name, or owner/name@revision with a branch, tag or commit.",
            place="source.hub",
        )
    return repo, revision or None


def _translated(error: Exception, reference: str) -> HiloraError:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return InvalidInput(
            f"{reference} is gated and this registry has no access.",
            code="hub_gated",
            remedy="Accept the conditions on the hub and give the registry HF_TOKEN.",
            place="source.hub",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return InvalidInput(
            f"{reference}: the repository has no such revision.",
            code="hub_revision_not_found",
            remedy="Give a branch, tag or commit that exists.",
            place="source.hub",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return InvalidInput(
            f"{reference} does not exist on the hub, or is private.",
            code="hub_not_found",
            remedy="Check the name; for a private repository give the registry HF_TOKEN.",
            place="source.hub",
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return InvalidInput(
            "The registry runs with HF_HUB_OFFLINE set and cannot reach the hub.",
            code="hub_offline",
            remedy="Upload the files instead, or unset HF_HUB_OFFLINE.",
            place="source.hub",
        )
    return Unavailable(
        f"The hub does not answer for {reference}: {type(error).__name__}: {str(error)[:200]}",
        code="hub_unavailable",
        remedy="Try again later, or upload the files.",
        place="source.hub",
    )
