"""Versions on disk: complete or not there, equal content once."""

from __future__ import annotations

import dataclasses
import hashlib
import os

import pytest
import safetensors.torch
import torch

from hilora.adapter import RocBasis
from hilora.errors import UnknownAdapter
from services.registry.infra import write_once
from services.registry.infra.artifact_store import DiskArtifactStore
from tests.builders.registry_values import a_draft


@pytest.fixture
def store(tmp_path):
    return DiskArtifactStore(tmp_path / "artifacts")


class TestWriting:
    def test_what_is_written_is_read(self, store):
        draft = a_draft()
        manifest = store.write(draft)

        assert store.manifest(manifest.revision) == manifest
        for basis in RocBasis:
            with store.open_components(manifest.revision, basis) as stream:
                data = stream.read()
            assert hashlib.sha256(data).hexdigest() == manifest.component_sha256[basis]
            tensors = safetensors.torch.load(data)
            for path, rocs in draft.decomposed[basis].modules.items():
                torch.testing.assert_close(tensors[f"{path}.roc_a"], rocs.a_RD, rtol=0, atol=0)
                torch.testing.assert_close(tensors[f"{path}.roc_b"], rocs.b_RO, rtol=0, atol=0)

    def test_every_file_has_the_digest_of_the_manifest(self, store, tmp_path):
        manifest = store.write(a_draft())
        folder = tmp_path / "artifacts" / manifest.revision

        digests = {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in folder.iterdir()
            if file.name not in {"manifest.json", "validation.json"}
        }

        assert digests == dict(manifest.files)

    def test_equal_content_is_stored_once(self, store, tmp_path):
        first = store.write(a_draft())

        assert store.write(a_draft()) == first
        assert len(list((tmp_path / "artifacts").iterdir())) == 1

    @pytest.mark.parametrize("other", [a_draft(seed=1), dataclasses.replace(a_draft(), base_model="another")])
    def test_other_content_is_another_version(self, store, other):
        assert store.write(a_draft()).revision != store.write(other).revision

    def test_a_writer_that_dies_leaves_nothing_that_is_found(self, store, monkeypatch, tmp_path):
        class Killed(BaseException):
            pass

        def die(_path, _data):
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(write_once, "write_durably", die)
            with pytest.raises(Killed):
                store.write(a_draft())
        (leftover,) = (tmp_path / "artifacts").iterdir()

        store.sweep()
        assert leftover.exists(), "it may belong to a writer that still runs"
        os.utime(leftover, (0, 0))
        store.sweep()
        assert not leftover.exists()
        assert store.write(a_draft()).revision

    def test_who_comes_second_takes_the_first_ones_version(self, store, monkeypatch, tmp_path):
        other = DiskArtifactStore(tmp_path / "artifacts")
        original = write_once.write_durably
        manifests = []

        def interrupted(path, data):
            if path.name == "manifest.json" and not manifests:
                manifests.append(None)
                manifests[0] = other.write(a_draft())
            original(path, data)

        monkeypatch.setattr(write_once, "write_durably", interrupted)

        assert store.write(a_draft()) == manifests[0]
        assert [folder.name for folder in (tmp_path / "artifacts").iterdir()] == [manifests[0].revision]


class TestReading:
    @pytest.mark.parametrize("revision", ["0" * 64, "..", "", "A" * 64, "../" + "0" * 61])
    def test_an_unknown_revision(self, store, revision):
        for read in (store.manifest, lambda key: store.open_components(key, RocBasis.SVD)):
            with pytest.raises(UnknownAdapter) as raised:
                read(revision)
            assert raised.value.code == "unknown_revision"

    def test_a_prefix_finds_its_version(self, store):
        revision = store.write(a_draft()).revision

        assert store.find(revision[:12]) == revision
        assert store.find("0" * 12) is None
        assert store.find("") is None
        assert store.find("*") is None
