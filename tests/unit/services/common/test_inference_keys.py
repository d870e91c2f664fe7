from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta

import pytest

from hilora.errors import InvalidInput, Unauthenticated
from services.common.auth import digest_of_key
from services.common.inference_keys import CallerRing, InferenceKeyFile, InferenceScope, KeyLimits, new_key
from tests.builders.patience import patient


def record(name, secret, **fields):
    return {"name": name, "sha256": digest_of_key(secret), **fields}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "keys.json"
    path.write_text(
        json.dumps(
            [
                record("ann", "secret-a", tenant="acme", limits={"requests_per_minute": 5}),
                record("bob", "secret-b", scopes=["read"]),
                record("old", "secret-c", expires_at=(datetime.now(UTC) - timedelta(seconds=1)).isoformat()),
            ]
        )
    )
    return path


class TestCallers:
    def test_a_key_brings_its_tenant_scopes_and_limits(self, file):
        ring = CallerRing([InferenceKeyFile(file)], default_limits=KeyLimits(max_concurrent=7))
        ann, bob = ring.authenticate("Bearer secret-a"), ring.authenticate("bearer secret-b")
        assert (ann.name, ann.tenant, ann.limits.requests_per_minute) == ("ann", "acme", 5)
        assert ann.scopes == frozenset(InferenceScope)
        assert (bob.scopes, bob.limits.max_concurrent) == ({InferenceScope.READ}, 7)

    @pytest.mark.parametrize("presented", ["", "secret-a", "Basic secret-a", "Bearer", "Bearer x", "Bearer secret-c"])
    def test_anything_else_is_nobody(self, file, presented):
        with pytest.raises(Unauthenticated) as refusal:
            CallerRing([InferenceKeyFile(file)]).authenticate(presented)
        assert refusal.value.code == "invalid_api_key"

    def test_without_any_source_everybody_passes_under_the_default_limits(self):
        caller = CallerRing([], default_limits=KeyLimits(max_concurrent=7)).authenticate("")
        assert (caller.name, caller.limits.max_concurrent) == ("anonymous", 7)

    def test_a_file_without_keys_locks_the_door(self, tmp_path):
        (tmp_path / "keys.json").write_text("[]")
        with pytest.raises(Unauthenticated):
            CallerRing([InferenceKeyFile(tmp_path / "keys.json")]).authenticate("Bearer x")


class TestFile:
    def test_a_revoked_key_stops_within_a_second(self, file):
        ring = CallerRing([InferenceKeyFile(file)])
        ring.authenticate("Bearer secret-a")
        file.write_text(json.dumps([record("bob", "secret-b")]))
        revoked_at = time.monotonic()
        while time.monotonic() - revoked_at < patient(1.0):
            try:
                ring.authenticate("Bearer secret-a")
            except Unauthenticated:
                break
            time.sleep(0.02)
        else:
            pytest.fail("the revoked key still opens the door")
        assert ring.authenticate("Bearer secret-b").name == "bob"

    def test_a_slip_of_the_pen_keeps_the_keys_that_were_there(self, file):
        ring = CallerRing([InferenceKeyFile(file)])
        file.write_text("[oops")
        time.sleep(0.6)
        assert ring.authenticate("Bearer secret-a").name == "ann"

    @pytest.mark.parametrize(
        "content",
        [
            "{}",
            "[1]",
            json.dumps([record("a b", "x")]),
            json.dumps([record("a", "x"), record("a", "y")]),
            json.dumps([record("a", "x", limits={"requests_per_minute": 0})]),
            json.dumps([record("a", "x", scopes=[])]),
        ],
    )
    def test_what_is_no_list_of_keys_is_refused_without_repeating_it(self, tmp_path, content):
        (tmp_path / "keys.json").write_text(content)
        with pytest.raises(InvalidInput) as refusal:
            InferenceKeyFile(tmp_path / "keys.json")
        assert refusal.value.code == "invalid_key_file"
        assert digest_of_key("x") not in str(refusal.value)


def test_new_keys_are_long_and_differ():
    assert len({new_key() for _ in range(100)}) == 100
    assert all(len(new_key()) > 40 for _ in range(10))
