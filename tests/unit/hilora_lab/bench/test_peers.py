from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from hilora.peft_format import read_peft_adapter
from hilora_lab.bench.model_shape import build_base, find_shape
from hilora_lab.bench.peers import Speed, continuous_batching_peer, generate_peer, peft_arrow_peer, peft_mixed_peer
from hilora_lab.bench.peft_folders import write_peft_folders
from hilora_lab.bench.workload import build_workload, random_prompts


@pytest.fixture(scope="module")
def base():
    return build_base(find_shape("tiny"))


@pytest.fixture(scope="module")
def folders(base, tmp_path_factory):
    workload = build_workload(base.model, num_adapters=4)
    return write_peft_folders(workload.adapters, tmp_path_factory.mktemp("adapters"))


class TestPeftFolders:
    def test_they_hold_the_workloads_adapters(self, base, folders):
        workload = build_workload(base.model, num_adapters=4)

        assert [folder.name for folder in folders] == list(workload.adapters)
        for folder, adapter in zip(folders, workload.adapters.values(), strict=True):
            config = json.loads((folder / "adapter_config.json").read_text())
            read = read_peft_adapter(config=config, tensors=load_file(folder / "adapter_model.safetensors"))
            assert read.modules.keys() == adapter.modules.keys()
            for path, factors in read.modules.items():
                rocs = adapter.modules[path]
                update = factors.scaling * factors.lora_b @ factors.lora_a
                torch.testing.assert_close(update, rocs.b_RO.T @ rocs.a_RD)


def assert_speed(speed: Speed) -> None:
    assert speed.end_to_end > 0
    assert speed.decode > 0


class TestPeers:
    def test_all_of_them_answer_with_as_many_tokens_as_asked(self, base, folders):
        prompts = random_prompts(2, length=6, vocab_size=base.vocab_size, seed=0)
        before = {name: parameter.clone() for name, parameter in base.model.named_parameters()}

        for peer in (generate_peer(base), peft_mixed_peer(base, folders), peft_arrow_peer(base, folders)):
            assert_speed(peer(prompts, 3))
        with continuous_batching_peer(base, num_prompts=2, max_len=9, chunk_tokens=32) as peer:
            assert_speed(peer(prompts, 3))
            assert_speed(peer(prompts, 2))

        assert {name for name, _ in base.model.named_parameters()} == before.keys()
        assert all(torch.equal(parameter, before[name]) for name, parameter in base.model.named_parameters())

    def test_a_peer_that_answers_too_little_is_not_compared(self, base, monkeypatch):
        peer = generate_peer(base)
        monkeypatch.setattr(
            "transformers.generation.utils.GenerationMixin.generate",
            lambda _, input_ids, streamer, **options: streamer.put(input_ids),
        )

        with pytest.raises(RuntimeError, match="generated 0 tokens instead of 4"):
            peer([(3, 4), (5, 6)], 2)
