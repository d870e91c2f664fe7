from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from hilora.access import AdapterAccess, TrustTier
from hilora.errors import Conflict
from services.registry.catalog_entry import CatalogRecord
from services.registry.infra.registration_store import DiskRegistrationStore
from services.registry.registration import AdapterVersion, Review, VersionState, first_registration

VERSION = AdapterVersion(
    version=1,
    revision="a" * 64,
    state=VersionState.READY,
    source_sha256="b" * 64,
    created_at=1.25,
    job_ids=("c" * 32,),
    profile_ids={"hash:2": "d" * 64, "hash:1": "e" * 64},
    review=Review(is_approval=True, reviewer="ada", reason="ü", reviewed_at=2.5),
)
FIRST = first_registration(
    "sorter", VERSION, access=AdapterAccess(trust_tier=TrustTier.TRUSTED, visible_to=("acme", "other"))
)


@pytest.fixture
def store(tmp_path):
    return DiskRegistrationStore(tmp_path)


class TestRecords:
    def test_what_is_put_is_there_the_order_of_profiles_included(self, store):
        store.put(FIRST, replaces=None)

        assert store.get("sorter") == FIRST
        assert store.all() == [FIRST]
        assert list(store.get("sorter").versions[0].profile_ids) == ["hash:2", "hash:1"]

    def test_only_who_read_the_last_one_may_replace_it(self, store):
        store.put(FIRST, replaces=None)
        second = replace(FIRST, catalog_generation=2)
        for stale in (None, second):
            with pytest.raises(Conflict) as raised:
                store.put(second, replaces=stale)
            assert raised.value.code == "registration_changed"
        store.put(second, replaces=FIRST)
        assert store.get("sorter") == second

    def test_the_list_is_read_anew_where_another_process_wrote_or_removed(self, store, tmp_path):
        store.put(FIRST, replaces=None)
        assert store.all() == [FIRST]
        other = DiskRegistrationStore(tmp_path)
        for generation in range(1, 20):
            changed = replace(FIRST, catalog_generation=generation)
            other.put(changed, replaces=other.get("sorter"))
            assert store.all() == [changed]
        (tmp_path / "sorter.json").unlink()
        assert store.all() == []

    def test_no_update_is_lost_among_many_writers(self, store, tmp_path):
        store.put(FIRST, replaces=None)

        def count(times):
            mine = DiskRegistrationStore(tmp_path)
            while times:
                current = mine.get("sorter")
                try:
                    mine.put(replace(current, catalog_generation=current.catalog_generation + 1), replaces=current)
                    times -= 1
                except Conflict:
                    pass

        threads = [threading.Thread(target=count, args=(10,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.get("sorter").catalog_generation == 40

    @pytest.mark.parametrize("name", ["../x", "", "a/b", ".catalog"])
    def test_a_name_never_becomes_another_path(self, store, name):
        assert store.get(name) is None

    def test_the_catalogue_s_record_is_no_name(self, store):
        record = CatalogRecord(catalog_generation=3, encoder_id="hash:1", aliases={"prod": "sorter@1"})
        store.put_record(record, replaces=CatalogRecord())

        assert store.record() == record
        assert store.all() == []
        with pytest.raises(Conflict):
            store.put_record(CatalogRecord(), replaces=CatalogRecord())
