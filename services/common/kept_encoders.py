"""Converted encoders on disk: a process that finds its encoder there imports no torch to embed, and converts nothing.

A folder for each encoder, named by all files of the encoder and the form of what is kept. Which versions of packages
converted it does not matter: whoever compiles it compares it with torch's vectors, which are kept, too. It is written
beside its place and renamed into it, so that it is whole or not there; what was changed since is noticed by its hash
and passed over.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from services.common.log import get_logger
from services.common.openvino_conversion import BareTokenizer, ConvertedEncoder, import_openvino

_log = get_logger(__name__)

KEPT_ENCODERS_FOLDER = Path("~/.cache/hilora-serve/encoders")
"""Where they are kept unless a setting says another place."""

_FORM = 1
"""Of what is kept; another one is another name."""
_GRAPH, _WEIGHTS, _TOKENIZER, _MANIFEST = "graph.xml", "graph.bin", "tokenizer.json", "manifest.json"
_MOST_KEPT = 4
"""Encoders; the oldest beyond them are removed."""
_ABANDONED_SECONDS = 3600.0
"""Age at which what was never renamed is nobody's any more."""
_PARTIAL = ".partial-"


class KeptEncoders:
    """The converted encoders of a folder, which may be read-only. Processes may share it.

    Args:
        folder: made when something is kept; `~` is the user's home.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = Path(os.path.expanduser(folder))  # noqa: PTH111  (Path's own raises where there is no home)

    def find(self, encoder: Path) -> ConvertedEncoder | None:
        """The kept conversion of the encoder in a folder; None if there is none, or none that can be read.

        Args:
            encoder: what `SentenceTransformer` would load.
        """
        try:
            place = self._place(encoder)
            return _read(place) if (place / _MANIFEST).is_file() else None
        except Exception as error:  # whatever somebody made of the files
            _log.warning("kept_encoder_unreadable", folder=str(self._folder), error=_told(error))
            return None

    def keep(self, encoder: Path, converted: ConvertedEncoder) -> None:
        """Keep a conversion for `find`; replaces one that is there. Where that fails, the log says so and all goes on.

        What has no tokeniser that stands alone is not kept: it needs the model anyway.
        """
        if not isinstance(converted.tokenizer, BareTokenizer):
            return
        try:
            place = self._place(encoder)
            self._folder.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=self._folder))
            try:
                _write(partial / "new", converted, converted.tokenizer)
                _put_in_place(partial / "new", place, partial / "old")
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            self._tidy(place)
        except Exception as error:  # a full or read-only disk, a graph that cannot be written: not worth a start
            _log.info("encoder_not_kept", folder=str(self._folder), error=_told(error))

    def _place(self, encoder: Path) -> Path:
        return self._folder / f"{encoder.name}-{_key(encoder)}"

    def _tidy(self, newest: Path) -> None:
        places = [place for place in self._folder.iterdir() if place.is_dir() and place != newest]
        kept = sorted((place for place in places if (place / _MANIFEST).is_file()), key=lambda at: _age(at / _MANIFEST))
        for place in kept[_MOST_KEPT - 1 :]:
            shutil.rmtree(place, ignore_errors=True)
        for place in places:
            if place.name.startswith(_PARTIAL) and _age(place) > _ABANDONED_SECONDS:
                shutil.rmtree(place, ignore_errors=True)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def _age(path: Path) -> float:
    """Seconds since its last change; none of what another process has just removed."""
    now = time.time()
    try:
        return now - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _key(encoder: Path) -> str:
    """Sixteen hex digits over all that decides a conversion."""
    digest = hashlib.sha256(f"{_FORM}\n".encode())
    for file in _files(encoder):
        digest.update(f"{file.relative_to(encoder)}\n".encode())
        digest.update(_hash(file).encode())
    return digest.hexdigest()[:16]


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.rglob("*")) if file.is_file())


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write(folder: Path, converted: ConvertedEncoder, tokenizer: BareTokenizer) -> None:
    folder.mkdir()
    folder.chmod(0o755)  # whatever the mask of whoever keeps it: others may read it
    # In float32, as it was made: half of the digits would give other vectors.
    import_openvino().save_model(converted.graph, folder / _GRAPH, compress_to_fp16=False)
    (folder / _TOKENIZER).write_text(tokenizer.tokenizer.to_str(), encoding="utf-8")
    manifest = {
        "prompt": converted.prompt,
        "embedding_dim": converted.embedding_dim,
        "expected": converted.expected_BE.tolist(),
        "sha256": {name: _hash(folder / name) for name in (_GRAPH, _WEIGHTS, _TOKENIZER)},
    }
    (folder / _MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


def _put_in_place(new: Path, place: Path, aside: Path) -> None:
    """Rename a whole folder into its place, and what was there out of it: a folder cannot replace one.

    Somebody else's, put there meanwhile and made of the same files, is as good.
    """
    with suppress(FileNotFoundError):  # nothing was there, or another process has just taken it away
        place.rename(aside)
    try:
        new.rename(place)
    except OSError:
        if not place.is_dir():
            raise


def _read(place: Path) -> ConvertedEncoder:
    from tokenizers import Tokenizer

    openvino = import_openvino()
    manifest: dict[str, Any] = json.loads((place / _MANIFEST).read_text(encoding="utf-8"))
    for name in (_GRAPH, _WEIGHTS, _TOKENIZER):
        if _hash(place / name) != manifest["sha256"][name]:
            raise ValueError(f"{name} is not what was kept")
    return ConvertedEncoder(
        graph=openvino.Core().read_model(place / _GRAPH),
        tokenizer=BareTokenizer(Tokenizer.from_file(str(place / _TOKENIZER))),
        prompt=str(manifest["prompt"]),
        embedding_dim=int(manifest["embedding_dim"]),
        expected_BE=np.array(manifest["expected"], dtype=np.float32),
    )
