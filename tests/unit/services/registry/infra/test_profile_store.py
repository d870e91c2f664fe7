from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest

from hilora.character_grams import gram_ids
from hilora.errors import UnknownAdapter
from services.registry.infra.profile_store import DiskProfileStore
from tests.builders.registry_values import a_profile

REVISION = "a" * 64


@pytest.fixture
def store(tmp_path):
    return DiskProfileStore(tmp_path / "profiles")


class TestProfiles:
    def test_what_is_written_is_read(self, store):
        profile = a_profile()
        record = store.write(REVISION, profile)

        assert store.record(REVISION, record.profile_id) == record
        assert (record.encoder_id, record.num_samples, record.embedding_dim) == ("hash:1", 3, 8)
        assert store.texts(REVISION, record.profile_id) == profile.texts
        assert np.array_equal(store.embeddings(REVISION, record.profile_id), profile.embeddings_mE)
        grams = store.grams(REVISION, record.profile_id)
        assert [grams.sample(place).tolist() for place in range(3)] == [gram_ids(t).tolist() for t in profile.texts]

    def test_a_profile_from_before_there_were_grams_gets_them_from_its_texts(self, store, tmp_path):
        profile = a_profile()
        record = store.write(REVISION, profile)
        stored = store.grams(REVISION, record.profile_id)
        for file in (tmp_path / "profiles" / REVISION / record.profile_id).glob("grams*"):
            file.unlink()
        again = store.grams(REVISION, record.profile_id)
        assert np.array_equal(again.ids_N, stored.ids_N)
        assert np.array_equal(again.lengths_M, stored.lengths_M)

    def test_the_empty_folder_that_a_killed_purge_left_is_swept_once_it_is_old(self, store, tmp_path):
        store.write(REVISION, a_profile())
        old, fresh = (tmp_path / "profiles" / (letter * 64) for letter in "bc")
        for folder in (old, fresh):
            folder.mkdir()
        os.utime(old, (0, 0))
        os.utime(tmp_path / "profiles" / REVISION, (0, 0))

        store.sweep()

        assert not old.exists()
        assert fresh.exists()
        assert len(store.folders.stored()) == 1

    def test_equal_ones_are_stored_once(self, store):
        assert store.write(REVISION, a_profile()) == store.write(REVISION, a_profile())
        assert len(store.folders.stored()) == 1

    @pytest.mark.parametrize(
        "change", [{"texts": ("one", "zwei", "drei")}, {"encoder_id": "hash:2"}, {"source": "bundled"}]
    )
    def test_texts_encoder_and_source_make_another_one(self, store, change):
        other = dataclasses.replace(a_profile(), **change)
        assert store.write(REVISION, a_profile()).profile_id != store.write(REVISION, other).profile_id

    @pytest.mark.parametrize("revision", [REVISION, "..", "", "../" + "a" * 61])
    @pytest.mark.parametrize("profile_id", ["b" * 64, "..", "", "/etc"])
    def test_what_is_not_there_is_unknown(self, store, revision, profile_id):
        for read in (store.record, store.texts, store.embeddings, store.grams):
            with pytest.raises(UnknownAdapter) as raised:
                read(revision, profile_id)
            assert raised.value.code == "unknown_profile"

    def test_a_damaged_record_is_unknown(self, store, tmp_path):
        record = store.write(REVISION, a_profile())
        (tmp_path / "profiles" / REVISION / record.profile_id / "profile.json").write_text("{")
        with pytest.raises(UnknownAdapter):
            store.record(REVISION, record.profile_id)
