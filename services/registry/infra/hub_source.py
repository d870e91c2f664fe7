"""Reads adapters from the HuggingFace Hub: the few files of one commit that make one, nothing else of a repository.

`HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`, `HF_HUB_CACHE` and `HF_HUB_OFFLINE` are honoured by the library itself. The
endpoint is the operator's, so it is trusted, a private one included.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hilora.errors import HiloraError, InvalidInput
from services.registry.adapter_files import CARD_FILE, MAX_CARD_BYTES, files_to_fetch
from services.registry.infra.hub_download import HubDownloader, HubFile
from services.registry.infra.hub_errors import translated
from services.registry.infra.transfer import FetchLimits, Transfer, oversize
from services.registry.ports import ProgressListener

_PLACE = "source.hub"
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[\w][\w./-]{0,127}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT_SECONDS = 20.0


class HubSource:
    """See `AdapterSource`; a reference is `owner/name` or `owner/name@revision`.

    Args:
        is_allowed: whether the operator lets adapters come from the hub.
        limits: on the sum of an adapter's files, checked before anything is downloaded, and on the time.
        cache: folder of unfinished downloads.
        token: credential for private and gated repositories; `None` leaves it to the library.
    """

    def __init__(self, *, is_allowed: bool, limits: FetchLimits, cache: Path, token: str | None = None) -> None:
        self._is_allowed = is_allowed
        self._limits = limits
        self._token = token
        self._downloader = HubDownloader(cache, token=token)

    def check(self, reference: str) -> None:
        """See `AdapterSource.check`. Raises InvalidInput: `hub_not_allowed` or `invalid_hub_reference`."""
        if not self._is_allowed:
            raise InvalidInput(
                "This registry takes no adapters from the hub.",
                code="hub_not_allowed",
                remedy="Upload the files, or have the operator set HILORA_REGISTRY_ALLOW_HUB=true.",
                place=_PLACE,
            )
        _parse(reference)

    def fetch(self, reference: str, folder: Path, *, on_progress: ProgressListener) -> str:
        """See `AdapterSource.fetch`; returns `owner/name@<40-digit commit>`.

        Raises:
            InvalidInput: `hub_not_found`, `hub_gated`, `hub_access_denied`, `hub_revision_not_found`, `hub_offline`,
                `hub_refused`, `upload_too_large`, `fetch_too_slow`.
            InvalidAdapter: `not_an_adapter`, `pickle_refused`.
            Exhausted: `hub_rate_limited`.
            Unavailable: `hub_unavailable`, `hub_busy`, `hub_content_mismatch`; what has arrived is kept.
        """
        self.check(reference)
        repo, revision = _parse(reference)
        transfer = Transfer(self._limits, on_progress=on_progress, place=_PLACE)
        try:
            files = self._listed(repo, revision)
            transfer.expect(sum(file.size for file in files))
            for file in files:
                self._downloader.download(file, folder / file.name, transfer)
        except HiloraError:
            raise
        except Exception as error:
            raise translated(error, reference) from error
        return f"{repo}@{files[0].commit}"

    def _listed(self, repo: str, revision: str | None) -> list[HubFile]:
        """The files to bring, at the commit that the revision means now, with their sizes and digests."""
        from huggingface_hub import HfApi  # a second of import that uploads need not pay

        info = HfApi(token=self._token).model_info(
            repo, revision=revision, files_metadata=True, timeout=_TIMEOUT_SECONDS
        )
        commit = str(info.sha)
        if not _COMMIT.fullmatch(commit):
            raise InvalidInput(
                f"{repo} names no commit.", code="hub_refused", remedy="Check HF_ENDPOINT.", place=_PLACE
            )
        by_name = {str(file.rfilename): file for file in info.siblings or ()}
        wanted = files_to_fetch(by_name, place=_PLACE)
        return list(self._sized(repo, commit, (by_name[name] for name in wanted)))

    def _sized(self, repo: str, commit: str, siblings: Iterable[Any]) -> Iterable[HubFile]:
        for sibling in siblings:
            lfs = sibling.lfs
            size = sibling.size if lfs is None else lfs.size
            if sibling.rfilename == CARD_FILE and (size is None or size > MAX_CARD_BYTES):
                continue
            if size is None:
                # An endpoint that does not say could send for ever.
                raise oversize(self._limits.max_bytes, place=_PLACE)
            yield HubFile(
                repo=repo,
                commit=commit,
                name=str(sibling.rfilename),
                size=int(size),
                sha256=None if lfs is None else str(lfs.sha256),
                blob_id=sibling.blob_id,
            )


def _parse(reference: str) -> tuple[str, str | None]:
    repo, separator, revision = reference.partition("@")
    is_sound = _REPO.fullmatch(repo) and (not separator or _REVISION.fullmatch(revision)) and ".." not in reference
    if not is_sound:
        raise InvalidInput(
            f"{reference[:200]!r} names no repository of the hub.",
            code="invalid_hub_reference",
            remedy="Write owner/name, or owner/name@revision with a branch, tag or commit.",
            place=_PLACE,
        )
    return repo, revision or None
