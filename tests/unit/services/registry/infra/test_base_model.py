"""The list of the served base's modules, made without its weights."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors import safe_open

from hilora.errors import InvalidInput
from services.registry.infra import base_model
from services.registry.infra.base_model import TransformersBaseModel

BASE = Path(__file__).resolve().parents[5] / "examples" / "testbed" / "base"


class TestModules:
    def test_they_have_the_shapes_of_the_weights(self, tmp_path):
        modules = TransformersBaseModel(str(BASE), name="base", cache_folder=tmp_path).modules()

        with safe_open(BASE / "model.safetensors", framework="pt") as file:
            for path, shape in modules.items():
                if path == "lm_head":  # tied to the embedding, so the file may not hold it
                    continue
                in_file = tuple(file.get_slice(f"{path}.weight").get_shape())
                assert in_file == (shape[::-1] if path == "model.embed_tokens" else shape)
        assert {"model.layers.0.self_attn.q_proj", "model.embed_tokens", "lm_head"} <= modules.keys()

    def test_weights_that_two_modules_share_are_known_also_to_later_starts(self, tmp_path):
        config = json.loads((BASE / "config.json").read_text())
        for is_tied in (True, False):
            folder = tmp_path / str(is_tied)
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": is_tied}))
            for _ in range(2):
                base = TransformersBaseModel(str(folder), name="base", cache_folder=tmp_path / "cache")
                assert base.tied_modules() == ({"model.embed_tokens", "lm_head"} if is_tied else set())

    def test_a_shorter_list_of_an_older_release_is_not_taken(self, tmp_path):
        first = TransformersBaseModel(str(BASE), name="base", cache_folder=tmp_path).modules()
        (cache,) = tmp_path.glob("*.json")
        cache.rename(tmp_path / cache.name.replace(f"-{base_model._LISTING}-", "-"))
        (tmp_path / cache.name.replace(f"-{base_model._LISTING}-", "-")).write_text("{}")

        assert TransformersBaseModel(str(BASE), name="base", cache_folder=tmp_path).modules() == first

    def test_a_later_start_need_not_build_the_model(self, tmp_path, monkeypatch):
        first = TransformersBaseModel(str(BASE), name="base", cache_folder=tmp_path).modules()
        monkeypatch.setattr(base_model, "_listing_of", lambda _: pytest.fail("built again"))

        assert TransformersBaseModel(str(BASE), name="base", cache_folder=tmp_path).modules() == first

    def test_of_two_that_start_together_one_builds_it(self, tmp_path, monkeypatch):
        built = []
        real = base_model._listing_of

        def slowly(model):
            built.append(model)
            time.sleep(0.3)
            return real(model)

        monkeypatch.setattr(base_model, "_listing_of", slowly)
        bases = [TransformersBaseModel(str(BASE), name="base", cache_folder=tmp_path) for _ in range(3)]
        with ThreadPoolExecutor(3) as threads:
            listed = list(threads.map(lambda base: base.modules(), bases))

        assert len(built) == 1
        assert listed[0] == listed[1] == listed[2] != {}

    def test_another_config_is_another_model(self, tmp_path):
        TransformersBaseModel(str(BASE), name="base", cache_folder=tmp_path / "cache").modules()
        other = tmp_path / "other"
        other.mkdir()
        shutil.copy(BASE / "config.json", other)
        config = json.loads((other / "config.json").read_text())
        config["intermediate_size"] *= 2
        (other / "config.json").write_text(json.dumps(config))

        modules = TransformersBaseModel(str(other), name="other", cache_folder=tmp_path / "cache").modules()

        assert modules["model.layers.0.mlp.up_proj"][0] == config["intermediate_size"]

    def test_a_damaged_cache_is_made_again(self, tmp_path):
        first = TransformersBaseModel(str(BASE), name="base", cache_folder=tmp_path).modules()
        (cache,) = tmp_path.glob("*.json")
        cache.write_text("{")

        assert TransformersBaseModel(str(BASE), name="base", cache_folder=tmp_path).modules() == first

    def test_what_is_no_model(self, tmp_path):
        (tmp_path / "config.json").write_text("{}")

        with pytest.raises(InvalidInput) as raised:
            TransformersBaseModel(str(tmp_path), name="base", cache_folder=tmp_path).modules()

        assert raised.value.code == "base_model_unreadable"


class TestEncoderDecoderModels:
    def test_layers_of_both_halves_are_listed(self, tmp_path):
        from transformers import T5Config

        folder = tmp_path / "t5"
        T5Config(d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=2, vocab_size=40).save_pretrained(folder)

        modules = TransformersBaseModel(str(folder), name="t5", cache_folder=tmp_path / "cache").modules()

        assert modules["encoder.block.0.layer.0.SelfAttention.q"] == (8, 16)
        assert modules["decoder.block.0.layer.1.EncDecAttention.v"] == (8, 16)
        assert modules["decoder.block.0.layer.2.DenseReluDense.wo"] == (16, 24)
        assert not any("relative_attention_bias" in path for path in modules)
