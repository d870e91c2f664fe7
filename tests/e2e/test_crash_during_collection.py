"""kill -9 of the registry, or of Redis with it, at every step of garbage collection: nothing in use is lost.

Each row replaces an adapter, so that its first version expires, and kills in the middle of collecting it. Started
again, the registry must finish by itself: the first version's files are gone, all others are whole. The first version
of another adapter, which only an alias keeps, is there from the first row to the last.
"""

from __future__ import annotations

import json
import os

import pytest

from tests.builders.crash_changes import OTHER_CONTENT, seen
from tests.builders.crash_places import (
    ARTIFACT_ASIDE,
    ARTIFACT_PURGED,
    CATALOG_LOCK,
    COMMIT,
    FILE_PURGED,
    PROFILE_ASIDE,
    PROFILE_PURGED,
    RECORD,
    RECORD_WRITTEN,
    after,
    before,
)
from tests.builders.crash_system import CrashSystem
from tests.builders.store_check import artifact_problems, disk_catalog, profile_problems, store_problems

ALONE, WITH_REDIS = ("registry",), ("registry", "redis")
ROWS = (
    (before(RECORD_WRITTEN), ALONE),
    (before(RECORD), ALONE),
    (after(RECORD), ALONE),
    (after(RECORD), WITH_REDIS),
    (before(COMMIT), ALONE),
    (after(COMMIT), ALONE),
    (after(COMMIT), WITH_REDIS),
    (before(CATALOG_LOCK, since=RECORD), ALONE),
    (before(ARTIFACT_ASIDE), ALONE),
    (after(ARTIFACT_ASIDE), ALONE),
    (after(ARTIFACT_ASIDE), WITH_REDIS),
    (before(PROFILE_ASIDE), ALONE),
    (after(PROFILE_ASIDE), ALONE),
    (before(ARTIFACT_PURGED), ALONE),
    (before(FILE_PURGED, since=ARTIFACT_PURGED), ALONE),
    (before(FILE_PURGED, 3, since=ARTIFACT_PURGED), ALONE),
    (after(ARTIFACT_PURGED), ALONE),
    (before(PROFILE_PURGED), ALONE),
    (before(FILE_PURGED, 2, since=PROFILE_PURGED), WITH_REDIS),
    (after(PROFILE_PURGED), ALONE),
)
GRACE_SECONDS = 2.0
KEPT = "kept"


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    running = CrashSystem(
        tmp_path_factory.mktemp("collection"), keep_versions=1, collection_grace_seconds=GRACE_SECONDS
    )
    running.start()
    publish(running, KEPT, seed=500)
    assert running.http.put("/v1/aliases/stable", json={"target": f"{KEPT}@1"}).is_success
    publish(running, KEPT, seed=500 + OTHER_CONTENT, replace="true")
    yield running
    running.stop()


def publish(system, name, **upload):
    assert system.finished(system.upload(name, **upload))["state"] == "READY"


def versions(system, name):
    return json.loads((system.data_dir / "adapters" / f"{name}.json").read_bytes())["versions"]


def is_whole(system, version):
    """Whether a version's components and profiles are there."""
    problems = artifact_problems(system.data_dir, version["revision"])
    for profile_id in version["profile_ids"].values():
        problems += profile_problems(system.data_dir, version["revision"], profile_id)
    return version["state"] == "READY" and bool(version["profile_ids"]) and problems == []


def leftovers(system, revision):
    """The files that are still there of a version, aside or not. An empty folder is swept within the hour."""
    # os.walk minds no folder that goes away meanwhile.
    walks = (os.walk(system.data_dir / kind) for kind in ("artifacts", "profiles"))
    return [(folder, name) for walk in walks for folder, _, names in walk for name in names if revision in folder]


class TestCollection:
    @pytest.mark.timeout(600)
    @pytest.mark.parametrize(
        ("number", "moment", "victims"),
        [(number, *row) for number, row in enumerate(ROWS)],
        ids=[f"{'+'.join(victims)} {moment.what}" for moment, victims in ROWS],
    )
    def test_what_is_referred_to_stays_and_the_rest_goes(self, system, number, moment, victims):
        system.start()
        name = f"adapter-{number}"
        publish(system, name, seed=number)
        first = versions(system, name)[0]
        system.set_trap("registry", moment, victims=victims)
        # Answered or not: what is replaced expires, and the trap may spring in any round after that.
        assert system.upload(name, seed=number + OTHER_CONTENT, replace="true").status_code == 202

        system.until(lambda: system.fell("registry", victims), f"{victims} fell {moment.what}")

        assert store_problems(system.data_dir) == []
        assert all(is_whole(system, version) for version in versions(system, KEPT))
        system.start()
        system.until(lambda: not leftovers(system, first["revision"]), "the first version is gone")
        gone, second = versions(system, name)
        assert gone["state"] == "COLLECTED"
        assert is_whole(system, second)
        assert all(is_whole(system, version) for version in versions(system, KEPT))
        assert store_problems(system.data_dir) == []
        assert seen(system, name)["current"] == 2
        shown = {entry["name"]: entry["revision"] for entry in system.catalog()["data"]}
        assert shown == disk_catalog(system.data_dir).revisions
        assert system.aliases() == {"stable": f"{KEPT}@1"}
