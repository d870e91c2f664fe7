"""Prompts from the data set that an adapter's card names, fetched from the hub under the same guard as adapters."""

from __future__ import annotations

import asyncio
import re
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from hilora.errors import HiloraError, InvalidInput
from services.common.log import get_logger
from services.registry.artifact import ProfileSubject, SamplesSource
from services.registry.infra.dataset_rows import DATA_SUFFIXES, prompts_of
from services.registry.infra.hub_download import HubDownloader, HubFile
from services.registry.infra.hub_errors import translated
from services.registry.infra.model_card import read_model_card
from services.registry.infra.transfer import FetchLimits, Transfer

_log = get_logger(__name__)

_PLACE = "source.dataset"
_REPO = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT_SECONDS = 20.0
_MAX_DATASETS = 3
_MAX_FILES = 3

DATASET_LIMITS = FetchLimits(max_bytes=16 * 1024 * 1024, max_seconds=120.0)
"""For one file of a data set: twenty prompts are wanted, not the data."""


class DatasetTexts:
    """See `ProfileTexts`.

    Args:
        cache: folder of unfinished downloads.
        token: credential for private and gated repositories; `None` leaves it to the library.
        limits: on one file; larger ones are passed over.
    """

    source = SamplesSource.DATASET

    def __init__(self, *, cache: Path, token: str | None = None, limits: FetchLimits = DATASET_LIMITS) -> None:
        self._token = token
        self._downloader = HubDownloader(cache, token=token)
        self._limits = limits

    async def texts(self, subject: ProfileSubject) -> tuple[str, ...]:
        """See `ProfileTexts.texts`. A data set that does not exist, or is not open to this registry, has no texts."""
        if subject.card is None:
            return ()
        return await asyncio.to_thread(self._first_of, subject.card)

    def _first_of(self, card: str) -> tuple[str, ...]:
        named = [repo for repo in read_model_card(card).datasets if _REPO.fullmatch(repo) and ".." not in repo]
        for repo in named[:_MAX_DATASETS]:
            try:
                if prompts := self._of(repo):
                    return prompts
            except InvalidInput as error:
                _log.info("dataset_passed_over", dataset=repo, code=error.code, reason=error.message)
        return ()

    def _of(self, repo: str) -> tuple[str, ...]:
        try:
            with tempfile.TemporaryDirectory(prefix="hilora-dataset-") as folder:
                for file in self._listed(repo):
                    suffix = PurePosixPath(file.name.lower()).suffix
                    target = Path(folder) / f"rows{suffix}"
                    transfer = Transfer(self._limits, on_progress=_say_nothing, place=_PLACE)
                    self._downloader.download(file, target, transfer)
                    if prompts := prompts_of(target, suffix=suffix):
                        return prompts
        except HiloraError:
            raise
        except Exception as error:
            raise translated(error, f"datasets/{repo}") from error
        return ()

    def _listed(self, repo: str) -> list[HubFile]:
        """The files worth reading, at one commit: training data first, the smaller ones before the larger."""
        from huggingface_hub import HfApi  # a second of import that uploads need not pay

        info = HfApi(token=self._token).dataset_info(repo, files_metadata=True, timeout=_TIMEOUT_SECONDS)
        commit = str(info.sha)
        if not _COMMIT.fullmatch(commit):
            return []
        files = [file for sibling in info.siblings or () if (file := self._file(repo, commit, sibling)) is not None]
        return sorted(files, key=lambda file: ("train" not in file.name.lower(), file.size, file.name))[:_MAX_FILES]

    def _file(self, repo: str, commit: str, sibling: Any) -> HubFile | None:
        name = str(sibling.rfilename)
        lfs = sibling.lfs
        size = sibling.size if lfs is None else lfs.size
        if PurePosixPath(name.lower()).suffix not in DATA_SUFFIXES or size is None or size > self._limits.max_bytes:
            return None
        return HubFile(
            repo=repo,
            repo_type="dataset",
            commit=commit,
            name=name,
            size=int(size),
            sha256=None if lfs is None else str(lfs.sha256),
            blob_id=sibling.blob_id,
        )


def _say_nothing(done_bytes: int, total_bytes: int | None) -> None:
    """A `ProgressListener` for files that are here in a moment."""
