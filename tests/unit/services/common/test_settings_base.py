from __future__ import annotations

import pytest
from pydantic_settings import SettingsConfigDict

from hilora.errors import InvalidInput
from services.common.settings_base import ServiceSettings


class ExampleSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="HILORA_EXAMPLE_")

    port: int = 1
    """A port."""


class TestServiceSettings:
    def test_reads_its_variables(self, monkeypatch):
        monkeypatch.setenv("HILORA_EXAMPLE_PORT", "7")

        assert ExampleSettings().port == 7

    def test_an_unknown_variable_with_the_prefix_is_refused_by_name(self, monkeypatch):
        monkeypatch.setenv("HILORA_EXAMPLE_PROT", "7")

        with pytest.raises(InvalidInput, match="HILORA_EXAMPLE_PROT") as raised:
            ExampleSettings()

        assert raised.value.code == "unknown_setting"

    def test_variables_of_other_services_do_not_matter(self, monkeypatch):
        monkeypatch.setenv("HILORA_OTHER_THING", "7")

        assert ExampleSettings().port == 1

    def test_a_wrong_type_is_refused(self, monkeypatch):
        monkeypatch.setenv("HILORA_EXAMPLE_PORT", "seven")

        with pytest.raises(ValueError, match="port"):
            ExampleSettings()

    def test_an_error_does_not_show_what_was_set(self, monkeypatch):
        monkeypatch.setenv("HILORA_EXAMPLE_PORT", "a-secret-in-the-wrong-place")

        with pytest.raises(ValueError, match="port") as raised:
            ExampleSettings()

        assert "a-secret" not in str(raised.value)

    def test_settings_do_not_change_after_start(self):
        settings = ExampleSettings()

        with pytest.raises(ValueError, match="frozen"):
            settings.port = 2
