"""A base's revision differs where its config, its files' names and sizes, or samples of them do."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from services.worker.models.base_revision import base_revision_of
from services.worker.models.loader import load_model
from tests.builders.models import save_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    save_base(folder)
    return folder


def _revision(folder: Path, **options: str) -> str:
    return base_revision_of(str(folder), None, **{"dtype": "float32", "quantization": None, **options})


class TestFolders:
    def test_where_they_lie_does_not_matter(self, base, tmp_path) -> None:
        shutil.copytree(base, tmp_path / "copy")
        assert _revision(tmp_path / "copy") == _revision(base)

    @pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
    def test_other_content_is_another_base(self, base, tmp_path, file) -> None:
        shutil.copytree(base, tmp_path / "copy")
        content = bytearray((tmp_path / "copy" / file).read_bytes())
        content[-2] ^= 1
        (tmp_path / "copy" / file).write_bytes(bytes(content))
        assert _revision(tmp_path / "copy") != _revision(base)

    def test_weights_beyond_the_first_megabytes_count(self, base, tmp_path) -> None:
        shutil.copytree(base, tmp_path / "copy")
        large = tmp_path / "copy" / "model-2.safetensors"
        large.write_bytes(bytes(20 << 20))
        before = _revision(tmp_path / "copy")
        large.write_bytes(bytes(10 << 20) + b"\1" * (10 << 20))
        assert _revision(tmp_path / "copy") != before

    def test_edits_between_the_samples_are_told_apart_by_the_config_alone(self, base, tmp_path) -> None:
        shutil.copytree(base, tmp_path / "copy")
        large, config = tmp_path / "copy" / "model-2.safetensors", tmp_path / "copy" / "config.json"
        large.write_bytes(bytes(20 << 20))
        before = _revision(tmp_path / "copy")
        with large.open("r+b") as stream:
            stream.seek(3 << 19)
            stream.write(b"edited")
        assert _revision(tmp_path / "copy") == before
        config.write_text(config.read_text(encoding="utf-8").replace("{", '{"edit": 1,', 1), encoding="utf-8")
        assert _revision(tmp_path / "copy") != before

    def test_so_are_other_types_of_the_same_files(self, base) -> None:
        variants = [{}, {"dtype": "bfloat16"}, {"quantization": "bitsandbytes-nf4"}]
        assert len({_revision(base, **options) for options in variants}) == 3

    def test_a_loaded_model_carries_it(self, base) -> None:
        first = load_model(str(base), device="cpu")
        assert first.base_revision == load_model(str(base), device="cpu", name="other").base_revision
        assert first.base_revision != load_model(str(base), device="cpu", dtype="bfloat16").base_revision


class TestHub:
    def _model(self, commit: str | None, config: str = "{}") -> SimpleNamespace:
        return SimpleNamespace(config=SimpleNamespace(_commit_hash=commit, to_json_string=lambda *, use_diff: config))

    def _revision(self, model: SimpleNamespace, location: str = "owner/name") -> str:
        return base_revision_of(location, model, dtype="float32", quantization=None)

    def test_a_commit_decides(self) -> None:
        assert self._revision(self._model("a")) == self._revision(self._model("a", "{1}"))
        assert self._revision(self._model("a")) != self._revision(self._model("b"))
        assert self._revision(self._model("a")) != self._revision(self._model("a"), "owner/other")

    def test_without_one_the_config_has_to_do(self) -> None:
        assert self._revision(self._model(None)) != self._revision(self._model(None, "{1}"))
