"""Configuration: what is checked at the start, and what the ingest process gets to see."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from services.common.auth import AccessKey, Scope
from services.registry.infra.redis_connection import broker_url_of
from services.registry.settings import RegistrySettings

KEY = AccessKey.of_secret("ci", SecretStr("long-and-random"), frozenset({Scope.READ, Scope.WRITE}))
NEEDED = {"base_model": "base", "data_dir": Path("data"), "redis_url": SecretStr("redis://:secret@h/1")}


class TestSettings:
    def test_a_child_process_gets_the_same(self, monkeypatch):
        settings = RegistrySettings(
            **NEEDED,
            allowed_local_dirs=(Path("/a"), Path("/b")),
            allowed_object_stores=("s3://a", "s3://b/c"),
            allowed_url_hosts=("http://files.example",),
            hub_token=SecretStr("hf_secret"),
            admin_api_key=SecretStr("key"),
            admin_keys=(KEY,),
            allow_hub=False,
        )

        for name, value in settings.to_environment().items():
            monkeypatch.setenv(name, value)

        assert RegistrySettings() == settings

    def test_secrets_are_not_printed(self):
        text = repr(
            RegistrySettings(**NEEDED, admin_api_key=SecretStr("key-of-the-door"), hub_token=SecretStr("hf_secret"))
        )

        assert "secret@" not in text
        assert "key-of-the-door" not in text
        assert "hf_secret" not in text

    def test_an_open_door_to_the_network_is_refused(self):
        with pytest.raises(ValidationError, match="HILORA_REGISTRY_ADMIN_API_KEY"):
            RegistrySettings(**NEEDED, rest_host="0.0.0.0", allow_anonymous_admin=True)
        assert RegistrySettings(**NEEDED, rest_host="0.0.0.0", admin_api_key=SecretStr("key"))
        assert RegistrySettings(**NEEDED, rest_host="0.0.0.0", has_own_rest_port=False, allow_anonymous_admin=True)

    def test_a_door_without_a_key_is_opened_on_purpose_only(self):
        with pytest.raises(ValidationError, match="HILORA_REGISTRY_ALLOW_ANONYMOUS_ADMIN"):
            RegistrySettings(**NEEDED)
        assert RegistrySettings(**NEEDED, allow_anonymous_admin=True)

    @pytest.mark.parametrize(
        "keys", [{"admin_api_key": SecretStr("key")}, {"admin_keys": (KEY,)}, {"admin_keys_file": Path("keys.json")}]
    )
    def test_any_kind_of_key_will_do(self, keys):
        assert RegistrySettings(**NEEDED, **keys, rest_host="0.0.0.0").has_admin_keys

    def test_two_keys_of_one_name_are_refused(self):
        with pytest.raises(ValidationError, match="name of its own"):
            RegistrySettings(**NEEDED, admin_keys=(KEY, KEY))


class TestBrokerUrl:
    @pytest.mark.parametrize(
        ("url", "broker"),
        [
            ("redis://:p@h:6380/2", "redis://:p@h:6380/2"),
            ("unix:///run/r.sock", "redis+socket:///run/r.sock?virtual_host=0"),
            ("unix:///run/r.sock?db=3", "redis+socket:///run/r.sock?virtual_host=3"),
            ("unix:///a%20b/r.sock?db=0", "redis+socket:///a%20b/r.sock?virtual_host=0"),
        ],
    )
    def test_one_url_for_both_clients(self, url, broker):
        assert broker_url_of(url) == broker
