from __future__ import annotations

import pytest

from hilora.access import Requester
from hilora.errors import RegistryUnavailable, UnknownAdapter
from services.router.models import ModelDirectory
from tests.fakes.router_ports import FakeWorkers, InMemoryCatalog, catalog_view


def directory(view=None, *, base_model_name=None, reported="/models/tiny-base"):
    workers = FakeWorkers()
    workers.base_model = reported
    return ModelDirectory(catalog=InMemoryCatalog(view), workers=workers, base_model_name=base_model_name)


class TestBaseName:
    @pytest.mark.parametrize(
        ("setting", "reported", "expected"),
        [
            (None, "/models/tiny-base", "tiny-base"),
            (None, "owner/name", "owner/name"),
            (None, None, "base"),
            ("llama", "/models/tiny-base", "llama"),
        ],
    )
    def test_it_comes_from_the_setting_then_from_a_worker(self, setting, reported, expected):
        assert directory(base_model_name=setting, reported=reported).base_name == expected

    def test_base_always_means_the_base(self):
        models = directory()
        assert models.is_base("base")
        assert models.is_base("tiny-base")
        assert not models.is_base("/models/tiny-base")


class TestNames:
    def test_all_models_are_auto_the_base_and_the_adapters_by_name(self):
        models = directory(catalog_view({"b": ["x"], "a": ["y"]})).all_models()
        assert [model.model_id for model in models] == ["auto", "tiny-base", "a", "b"]
        assert [model.parent for model in models] == ["tiny-base", None, "tiny-base", "tiny-base"]
        assert models[2].root == "a@1"
        assert models[2].created_at == 1_700_000_000

    def test_an_adapter_that_is_gone_is_unknown(self):
        view = catalog_view({"a": ["x"], "b": ["y"]}, gone=["b"])
        models = directory(view)
        with pytest.raises(UnknownAdapter):
            models.adapter("b", view, Requester())
        with pytest.raises(UnknownAdapter) as raised:
            models.model("b")
        assert raised.value.code == "model_not_found"
        assert raised.value.place == "model"

    def test_without_a_snapshot_nothing_is_said_about_adapters(self):
        models = directory()
        assert models.model("auto").model_id == "auto"
        with pytest.raises(RegistryUnavailable):
            models.model("a")
        with pytest.raises(RegistryUnavailable):
            models.all_models()
