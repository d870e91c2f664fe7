from __future__ import annotations

from pathlib import Path

import pytest

from hilora.errors import InvalidInput
from services.standalone.settings import StandaloneSettings, child_environment


class TestChildEnvironment:
    def test_a_variable_of_ours_does_not_leak_into_a_childs_unset_field(self, monkeypatch):
        monkeypatch.setenv("HILORA_CHILD_KEY", "from outside")

        environment = child_environment({"HILORA_CHILD_PORT": "1"}, prefix="HILORA_CHILD_")

        assert "HILORA_CHILD_KEY" not in environment
        assert environment["HILORA_CHILD_PORT"] == "1"

    def test_the_rest_of_the_environment_is_passed_on(self, monkeypatch):
        monkeypatch.setenv("SOME_OTHER_VARIABLE", "1")

        assert child_environment({}, prefix="HILORA_CHILD_")["SOME_OTHER_VARIABLE"] == "1"


class TestStandaloneSettings:
    def test_a_misspelt_variable_is_an_error(self, monkeypatch):
        monkeypatch.setenv("HILORA_STANDALONE_PROT", "8000")

        with pytest.raises(InvalidInput, match="HILORA_STANDALONE_PROT"):
            StandaloneSettings(base_model="base", data_dir=Path("data"))
