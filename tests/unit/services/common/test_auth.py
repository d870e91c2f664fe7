"""Keys of the admin doors."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr, ValidationError

from hilora.errors import InvalidInput, Unauthenticated
from services.common import auth
from services.common.auth import ALL_SCOPES, AccessKey, FixedKeys, KeyFile, KeyRing, Scope, refuse_open_door


def a_key(name="ci", key="s3cret", scopes=ALL_SCOPES, **changes):
    return AccessKey.of_secret(name, SecretStr(key), frozenset(scopes)).model_copy(update=changes)


def ring(*keys, **options):
    return KeyRing([FixedKeys(keys)] if keys else [], **options)


class TestKeyRing:
    def test_a_key_tells_who_it_is_and_what_it_may(self):
        keys = ring(a_key("reader", "one", {Scope.READ}), a_key("writer", "two", {Scope.WRITE}))

        principal = keys.authenticate("Bearer two")

        assert (principal.name, principal.scopes) == ("writer", {Scope.WRITE})

    @pytest.mark.parametrize(
        "header", ["", "s3cret", "Basic s3cret", "Bearer", "Bearer wrong", "Bearer s3cre", "Bearer " + "x" * 100_000]
    )
    def test_anything_else_is_refused(self, header):
        with pytest.raises(Unauthenticated) as refused:
            ring(a_key()).authenticate(header)

        assert refused.value.code == "invalid_api_key"

    def test_an_expired_key_is_refused(self):
        now = datetime.now(UTC)

        assert ring(a_key(expires_at=now + timedelta(minutes=1))).authenticate("Bearer s3cret")
        with pytest.raises(Unauthenticated):
            ring(a_key(expires_at=now - timedelta(seconds=1))).authenticate("Bearer s3cret")

    def test_without_keys_nobody_passes_unless_that_is_wanted(self):
        with pytest.raises(Unauthenticated):
            ring().authenticate("")
        assert ring(is_anonymous_allowed=True).authenticate("").name == "anonymous"

    def test_a_key_ends_anonymous_access(self):
        with pytest.raises(Unauthenticated):
            ring(a_key(), is_anonymous_allowed=True).authenticate("")

    def test_a_source_that_ran_empty_locks_the_door(self):
        with pytest.raises(Unauthenticated):
            KeyRing([FixedKeys(())], is_anonymous_allowed=True).authenticate("")

    def test_the_key_itself_is_not_kept(self):
        assert "s3cret" not in a_key().model_dump_json() + repr(a_key())

    @pytest.mark.parametrize(
        "fields",
        [
            {"name": "a b", "sha256": "0" * 64, "scopes": ["read"]},
            {"name": "a", "sha256": "0" * 63, "scopes": ["read"]},
            {"name": "a", "sha256": "0" * 64, "scopes": []},
            {"name": "a", "sha256": "0" * 64, "scopes": ["admin"]},
            {"name": "a", "sha256": "0" * 64, "scopes": ["read"], "expires_at": "2030-01-01T00:00:00"},
            {"name": "a", "key": "plain", "scopes": ["read"]},
        ],
    )
    def test_a_malformed_record_is_refused(self, fields):
        with pytest.raises(ValidationError):
            AccessKey.model_validate(fields)


class TestKeyFile:
    @pytest.fixture
    def clock(self, monkeypatch):
        moment = [1000.0]
        monkeypatch.setattr(auth.time, "monotonic", lambda: moment[0])
        return moment

    def write(self, path, *keys):
        aside = path.with_suffix(".new")
        aside.write_text(json.dumps([key.model_dump(mode="json") for key in keys]))
        aside.replace(path)

    def test_it_is_read_again_when_it_changes(self, tmp_path, clock):
        path = tmp_path / "keys.json"
        self.write(path, a_key("one"))
        source = KeyFile(path)
        self.write(path, a_key("one"), a_key("two", "other"))

        clock[0] += 5

        assert [key.name for key in source.current()] == ["one", "two"]

    @pytest.mark.parametrize("content", ["", "{}", '[{"name": "x"}]', None])
    def test_a_slip_of_the_pen_keeps_the_keys_and_the_next_version_counts(self, tmp_path, clock, content):
        path = tmp_path / "keys.json"
        self.write(path, a_key("one"))
        source = KeyFile(path)
        path.unlink()
        if content is not None:
            path.write_text(content)

        clock[0] += 5
        assert [key.name for key in source.current()] == ["one"]

        self.write(path, a_key("two"))
        clock[0] += 5
        assert [key.name for key in source.current()] == ["two"]

    def test_at_the_start_it_has_to_be_there(self, tmp_path):
        with pytest.raises(InvalidInput) as refused:
            KeyFile(tmp_path / "none.json")

        assert refused.value.code == "invalid_key_file"

    def test_a_key_pasted_into_it_is_not_repeated(self, tmp_path):
        path = tmp_path / "keys.json"
        path.write_text('[{"name": "x", "sha256": "my-secret-key", "scopes": ["read"]}]')

        with pytest.raises(InvalidInput) as refused:
            KeyFile(path)

        assert "my-secret-key" not in str(refused.value)


class TestOpenDoor:
    @pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
    def test_on_loopback_it_may_be_opened_on_purpose(self, host):
        refuse_open_door(host=host, has_keys=False, is_anonymous_allowed=True, setting="X")
        with pytest.raises(ValueError, match="ALLOW_ANONYMOUS_ADMIN"):
            refuse_open_door(host=host, has_keys=False, is_anonymous_allowed=False, setting="X")

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
    def test_the_network_needs_a_key(self, host):
        with pytest.raises(ValueError, match="X"):
            refuse_open_door(host=host, has_keys=False, is_anonymous_allowed=True, setting="X")
        refuse_open_door(host=host, has_keys=True, is_anonymous_allowed=False, setting="X")
