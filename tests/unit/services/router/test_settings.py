from __future__ import annotations

import pytest
from pydantic import ValidationError

from hilora.errors import InvalidInput
from services.router.settings import RouterSettings


class TestEnvironment:
    def test_workers_are_separated_by_commas(self, monkeypatch):
        monkeypatch.setenv("HILORA_ROUTER_WORKER_ADDRESSES", "a:1, b:2,")
        assert RouterSettings().worker_addresses == ("a:1", "b:2")

    def test_gates_are_named_by_strategy(self, monkeypatch):
        monkeypatch.setenv("HILORA_ROUTER_GATES", "ramole=mine@12ab, phatgoose=other@34cd,")
        assert RouterSettings().gates == {"ramole": "mine@12ab", "phatgoose": "other@34cd"}

    @pytest.mark.parametrize("value", ["ramole", "ramole=", "magic=mine@12ab"])
    def test_a_gate_of_no_strategy_is_an_error(self, monkeypatch, value):
        monkeypatch.setenv("HILORA_ROUTER_GATES", value)
        with pytest.raises(ValidationError, match="strategy=gate_id"):
            RouterSettings()

    def test_no_worker_is_an_error(self, monkeypatch):
        monkeypatch.setenv("HILORA_ROUTER_WORKER_ADDRESSES", " ")
        with pytest.raises(ValidationError, match="at least one worker"):
            RouterSettings()

    def test_a_misspelt_variable_is_an_error(self, monkeypatch):
        monkeypatch.setenv("HILORA_ROUTER_GAMA", "0.4")
        with pytest.raises(InvalidInput) as raised:
            RouterSettings()
        assert raised.value.code == "unknown_setting"

    @pytest.mark.parametrize(
        ("name", "value"),
        [("GAMMA", "0"), ("GAMMA", "2"), ("STRATEGY", "explicit"), ("REST_PORT", "70000"), ("MAX_CANDIDATES", "0")],
    )
    def test_a_value_out_of_range_is_an_error(self, monkeypatch, name, value):
        monkeypatch.setenv(f"HILORA_ROUTER_{name}", value)
        with pytest.raises(ValidationError):
            RouterSettings()

    def test_every_field_is_documented(self):
        assert [name for name, field in RouterSettings.model_fields.items() if not field.description] == []
