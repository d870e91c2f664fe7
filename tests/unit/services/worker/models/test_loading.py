"""Loading a base from a folder, and encoding prompts for it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from hilora.errors import InvalidInput
from services.worker.models.chat_turns import ChatTurn
from services.worker.models.loader import load_model, public_name_of
from services.worker.models.prompt_encoder import PromptEncoder
from services.worker.models.tensor_parallel import ParallelGroup
from tests.builders.models import load_tiny, save_base
from tests.builders.seq2seq import save_seq2seq_base

_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    "<s>{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "my-base"
    save_base(folder, chat_template=_TEMPLATE)
    return folder


class TestLoadModel:
    def test_a_folder(self, folder) -> None:
        loaded = load_model(str(folder), device="cpu")
        assert (loaded.name, loaded.dtype, loaded.device.type) == ("my-base", torch.float32, "cpu")
        assert (loaded.num_layers, loaded.num_key_value_heads, loaded.head_dim) == (2, 2, 8)
        assert (loaded.max_position_embeddings, loaded.vocab_size) == (128, 259)
        assert loaded.eos_token_ids == {1}
        assert not loaded.model.training

    def test_name_and_type_can_be_chosen(self, folder) -> None:
        loaded = load_model(str(folder), name="public", dtype="bfloat16", device="cpu")
        assert (loaded.name, loaded.dtype) == ("public", torch.bfloat16)

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"dtype": "int4"}, "invalid_dtype"),
            ({"device": "abacus"}, "invalid_device"),
            ({"location": "/nowhere/at/all"}, "base_model_not_loadable"),
        ],
    )
    def test_what_cannot_be_loaded_is_said(self, folder, changes, code) -> None:
        with pytest.raises(InvalidInput) as caught:
            load_model(**{"location": str(folder), **changes})
        assert caught.value.code == code
        assert caught.value.remedy

    def test_a_gpu_that_is_not_there(self, folder) -> None:
        if torch.cuda.is_available():
            pytest.skip("this machine has one")
        with pytest.raises(InvalidInput, match="no GPU"):
            load_model(str(folder), device="cuda")

    def test_damaged_weights(self, folder, tmp_path) -> None:
        for file in folder.iterdir():
            content = file.read_bytes()
            (tmp_path / file.name).write_bytes(content[:1000] if file.suffix == ".safetensors" else content)
        with pytest.raises(InvalidInput) as caught:
            load_model(str(tmp_path))
        assert caught.value.code == "base_model_not_loadable"

    def test_a_missing_weight_is_not_replaced_by_random_numbers(self, folder, tmp_path) -> None:
        for file in folder.iterdir():
            shutil.copy(file, tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        del weights["model.layers.1.mlp.up_proj.weight"]
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(InvalidInput, match="up_proj"):
            load_model(str(tmp_path))

    def test_a_base_with_an_encoder_is_not_divided(self, tmp_path) -> None:
        save_seq2seq_base(tmp_path / "t5")
        group = ParallelGroup(rank=0, size=2, device=torch.device("cpu"), control=None)
        with pytest.raises(InvalidInput) as caught:
            load_model(str(tmp_path / "t5"), device="cpu", group=group)
        assert caught.value.code == "tensor_parallel_unsupported"

    def test_an_end_that_the_model_cannot_say_is_none(self, tmp_path) -> None:
        save_base(tmp_path / "base")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
        tokenizer.add_tokens(["<end>"])
        tokenizer.eos_token = "<end>"
        tokenizer.save_pretrained(tmp_path / "base")
        loaded = load_model(str(tmp_path / "base"), device="cpu")
        assert len(tokenizer) > loaded.vocab_size
        assert loaded.eos_token_ids and max(loaded.eos_token_ids) < loaded.vocab_size

    def test_a_model_that_cannot_be_told_positions_is_refused(self, tmp_path) -> None:
        save_base(tmp_path, architecture="bart", d_model=32, decoder_layers=1, decoder_ffn_dim=48, is_decoder=True)
        with pytest.raises(InvalidInput, match="positions") as caught:
            load_model(str(tmp_path), device="cpu")
        assert caught.value.code == "base_architecture_unsupported"

    def test_positions_that_begin_at_an_offset_are_learned_ones(self) -> None:
        loaded = load_tiny("opt", ffn_dim=48, word_embed_proj_dim=32, num_key_value_heads=None)
        assert loaded.num_learned_positions == 128
        assert load_tiny().num_learned_positions is None

    def test_public_names(self, folder) -> None:
        assert public_name_of(f"{folder}/") == "my-base"
        assert public_name_of("owner/name") == "owner/name"


class TestPromptEncoder:
    @pytest.fixture
    def encoder(self, folder) -> PromptEncoder:
        return PromptEncoder(load_model(str(folder), device="cpu").tokenizer, model_name="my-base")

    def test_text_round_trips(self, encoder) -> None:
        assert encoder._tokenizer.decode(list(encoder.encode("grüß dich"))) == "grüß dich"

    def test_chats_use_the_template_and_its_special_tokens_once(self, encoder) -> None:
        token_ids = encoder.encode_chat([ChatTurn(role="user", content="hi")])
        assert token_ids == (0, *encoder.encode("hi>"))

    @pytest.mark.parametrize(
        ("turns", "code"), [([], "empty_chat"), ([ChatTurn(role="system", content="x")], "invalid_chat")]
    )
    def test_chats_the_template_refuses(self, encoder, turns, code) -> None:
        with pytest.raises(InvalidInput) as caught:
            encoder.encode_chat(turns)
        assert caught.value.code == code

    def test_tokens_become_their_text_and_their_spelling(self, encoder) -> None:
        token_ids = encoder.encode("hi")
        assert encoder.decode(token_ids) == "hi"
        assert len(encoder.spell(token_ids)) == len(token_ids)

    @pytest.mark.parametrize("token_id", [-1, 10**9])
    def test_what_is_no_token_is_refused(self, encoder, token_id) -> None:
        for read in (encoder.decode, encoder.spell):
            with pytest.raises(InvalidInput) as caught:
                read([token_id])
            assert caught.value.code == "invalid_token_id"

    def test_the_last_message_can_be_continued(self, encoder) -> None:
        turns = [ChatTurn(role="user", content="hi"), ChatTurn(role="assistant", content="hey yo")]
        answered, continued = encoder.encode_chat(turns), encoder.encode_chat(turns, continues_final_message=True)
        assert encoder.decode(continued).endswith("hey yo")
        assert answered != continued

    def test_a_base_without_a_template(self, encoder) -> None:
        encoder._tokenizer.chat_template = None
        with pytest.raises(InvalidInput) as caught:
            encoder.encode_chat([ChatTurn(role="user", content="hi")])
        assert caught.value.code == "no_chat_template"
