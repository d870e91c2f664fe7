"""Encoder-decoder models in the engine: what it computes is what transformers does, whoever else is there."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import ClassVar

import pytest
import torch

from hilora.adapter import RocBasis
from hilora.errors import InvalidInput, InvalidSamplingParams
from hilora.routing_plan import GateParameters, GateRule, GateScope, RocScore
from hilora.target_layer import target_features
from services.worker.engine.engine import Engine
from tests.builders.components import InMemoryComponentSource
from tests.builders.engine import make_engine, make_plan, run_until_done, submit
from tests.builders.logits import LogitRecorder, assert_close, random_prompt, run_prompts
from tests.builders.models import apply_dense, linear_shapes, make_adapter
from tests.builders.seq2seq import SEQ2SEQ_VARIANTS, load_tiny_seq2seq, make_seq2seq, seq2seq_logits

_RANK = 4
_SUFFIXES = (".q", ".k", ".v", ".o", ".wi", ".wi_0", ".wi_1", ".wo")


@cache
def _adapters(variant: str) -> dict:
    shapes = linear_shapes(make_seq2seq(variant), suffixes=_SUFFIXES)
    return {f"a{idx}": make_adapter(shapes, rank=_RANK, seed=idx, scale=0.15) for idx in range(4)}


def _engine(variant: str = "t5-v1.1", **config) -> Engine:
    return make_engine(load_tiny_seq2seq(variant), InMemoryComponentSource(_adapters(variant)), **config)


@pytest.mark.parametrize("variant", SEQ2SEQ_VARIANTS)
class TestAgainstTransformers:
    def test_a_batch_of_all_lengths_equals_the_pass_over_the_whole_answer(self, variant) -> None:
        engine = _engine(variant, max_num_batched_tokens=23)
        recorder = LogitRecorder(engine)
        prompts = {f"r{length}": random_prompt(length, length) for length in (1, 5, 16, 17, 40)}
        # More tokens than the largest distance that has a bias of its own.
        done = run_prompts(engine, prompts, {}, max_tokens=30)
        reference = make_seq2seq(variant)
        for name, prompt in prompts.items():
            assert_close(recorder.of(name), seq2seq_logits(reference, prompt, done[name].token_ids))

    def test_greedy_answers_equal_generate(self, variant) -> None:
        prompts = {f"r{length}": random_prompt(length, length) for length in (3, 11, 30)}
        done = run_prompts(_engine(variant), prompts, {}, max_tokens=20, ignore_eos=False)
        reference = make_seq2seq(variant)
        for name, prompt in prompts.items():
            found = reference.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)
            assert done[name].token_ids == found[0, 1:].tolist()

    def test_one_adapter_with_full_budget_equals_its_dense_update(self, variant) -> None:
        engine = _engine(variant, max_num_batched_tokens=13)
        recorder = LogitRecorder(engine)
        prompt = random_prompt(20)
        done = run_prompts(engine, {"r": prompt, "base": prompt}, {"r": make_plan(("a1", _RANK, _RANK, 1.0))})
        reference = make_seq2seq(variant)
        assert_close(recorder.of("base"), seq2seq_logits(reference, prompt, done["base"].token_ids))
        apply_dense(reference, [(_adapters(variant)["a1"], 1.0)])
        assert_close(recorder.of("r"), seq2seq_logits(reference, prompt, done["r"].token_ids))


class TestBatches:
    _PLANS: ClassVar = {
        "two": make_plan(("a0", _RANK, 1, 0.5), ("a1", _RANK, 3, 0.5)),
        "three": make_plan(("a0", _RANK, 2, 0.3), ("a2", _RANK, 1, 0.3), ("a3", _RANK, 1, 0.4)),
        "global": make_plan(
            ("a1", _RANK, 2, 0.6), ("a3", _RANK, 2, 0.4), scope=GateScope.GLOBAL, score=RocScore.CONTRIBUTION
        ),
        "one": make_plan(("a2", _RANK, 2, 1.0)),
        "arrow": replace(
            make_plan(("a0", _RANK, _RANK, 1.0), ("a3", _RANK, _RANK, 1.0)),
            gate=GateParameters(rule=GateRule.ARROW, basis=RocBasis.SVD),
        ),
    }

    def test_plans_in_one_batch_equal_each_alone(self) -> None:
        prompts = {name: random_prompt(7 + 6 * idx, idx) for idx, name in enumerate([*self._PLANS, "base"])}
        engine = _engine()
        together = LogitRecorder(engine)
        run_prompts(engine, prompts, self._PLANS, max_tokens=6)
        for name, prompt in prompts.items():
            engine = _engine()
            alone = LogitRecorder(engine)
            run_prompts(engine, {name: prompt}, self._PLANS, max_tokens=6)
            assert_close(together.of(name), alone.of(name))

    def test_a_request_joins_while_others_write_and_one_leaves(self) -> None:
        engine = _engine()
        recorder = LogitRecorder(engine)
        first = submit(engine, "first", random_prompt(12), max_tokens=4)
        long = submit(engine, "long", random_prompt(9, 1), max_tokens=12, plan=self._PLANS["one"])
        for _ in range(20):
            engine.run_step()
            if len(first.token_ids) >= 3:
                break
        # Its slot is behind that of `first`, which leaves, so that rows and slots differ.
        late = submit(engine, "late", random_prompt(30, 2), max_tokens=6, plan=self._PLANS["two"])
        run_until_done(engine, first, long, late)
        for name, plan, prompt, done in (
            ("long", "one", random_prompt(9, 1), long),
            ("late", "two", random_prompt(30, 2), late),
        ):
            engine = _engine()
            alone = LogitRecorder(engine)
            run_prompts(engine, {name: prompt}, {name: self._PLANS[plan]}, max_tokens=len(done.token_ids))
            assert_close(recorder.of(name), alone.of(name))

    @pytest.mark.parametrize("num_batched_tokens", [4, 64])
    def test_a_preempted_answer_is_read_again_and_goes_on(self, num_batched_tokens) -> None:
        """With four tokens a step, prompt and answer are read again in pieces."""
        prompts = {"a": random_prompt(11), "b": random_prompt(11, 1)}
        plans = {"a": self._PLANS["two"]}
        undisturbed = run_prompts(_engine(), prompts, plans, max_tokens=40)
        config = {"max_num_seqs": 2, "max_num_batched_tokens": num_batched_tokens}
        engine = _engine(**config)
        # Its adapters are there from now on, so that both requests begin together.
        run_prompts(engine, {"first": random_prompt(3)}, {"first": self._PLANS["two"]}, max_tokens=1)
        recorders = {
            name: submit(engine, name, prompt, plan=plans.get(name), max_tokens=40) for name, prompt in prompts.items()
        }
        while len(recorders["a"].token_ids) < 5:
            engine.run_step()
        urgent = submit(engine, "urgent", random_prompt(5, 2), max_tokens=3, priority=-1)
        run_until_done(engine, urgent, *recorders.values())
        engine.check_integrity()
        assert engine.stats().counters.num_preemptions > 0
        assert {name: one.token_ids for name, one in recorders.items()} == {
            name: one.token_ids for name, one in undisturbed.items()
        }

    def test_more_layers_in_the_decoder_than_in_the_encoder(self) -> None:
        engine = make_engine(load_tiny_seq2seq(num_decoder_layers=3))
        recorder = LogitRecorder(engine)
        prompt = random_prompt(10)
        done = run_prompts(engine, {"r": prompt}, {})
        assert_close(recorder.of("r"), seq2seq_logits(make_seq2seq(num_decoder_layers=3), prompt, done["r"].token_ids))


class TestLimits:
    def test_prompt_and_answer_fill_the_context_to_the_last_token(self) -> None:
        engine = _engine(max_model_len=24)
        recorder = LogitRecorder(engine)
        prompt = random_prompt(17)
        done = run_prompts(engine, {"r": prompt, "other": random_prompt(3)}, {}, max_tokens=99)
        assert len(done["r"].token_ids) == 7
        assert_close(recorder.of("r"), seq2seq_logits(make_seq2seq(), prompt, done["r"].token_ids))

    def test_memory_for_fewer_requests_lets_the_others_wait(self) -> None:
        loaded = load_tiny_seq2seq()
        slot_bytes = 2 * loaded.num_layers * 4 * 8 * 96 * 8
        engine = make_engine(loaded, kv_cache_bytes=2 * slot_bytes)
        done = run_prompts(engine, {f"r{idx}": random_prompt(8, idx) for idx in range(5)}, {})
        assert all(len(one.token_ids) == 8 for one in done.values())
        with pytest.raises(InvalidInput) as caught:
            make_engine(load_tiny_seq2seq(), kv_cache_bytes=slot_bytes - 1)
        assert caught.value.code == "kv_cache_too_small"

    def test_log_probabilities_of_a_prompt_are_refused(self) -> None:
        with pytest.raises(InvalidSamplingParams) as caught:
            submit(_engine(), "r", random_prompt(4), prompt_logprobs=1)
        assert caught.value.place == "prompt_logprobs"

    def test_log_probabilities_of_the_answer_are_told(self) -> None:
        engine = _engine()
        recorder = LogitRecorder(engine)
        done = run_prompts(engine, {"r": random_prompt(4)}, {}, logprobs=2)
        told = [position for event in done["r"].events[1:-1] for position in event.logprobs]
        expected = recorder.of("r").log_softmax(-1).amax(-1)
        assert [position.chosen.logprob for position in told] == pytest.approx(expected.tolist(), abs=1e-5)

    def test_architectures_with_other_positions_are_refused(self) -> None:
        loaded = load_tiny_seq2seq()
        loaded.model.config.model_type = "bart"
        with pytest.raises(InvalidInput) as caught:
            make_engine(loaded)
        assert caught.value.code == "unsupported_architecture"

    def test_half_precision_that_overflows_is_refused(self) -> None:
        with pytest.raises(InvalidInput) as caught:
            make_engine(load_tiny_seq2seq(dtype=torch.float16))
        assert caught.value.code == "invalid_dtype"

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_the_types_it_is_served_in(self, dtype) -> None:
        loaded = load_tiny_seq2seq(dtype=dtype)
        engine = make_engine(loaded, InMemoryComponentSource(_adapters("t5-v1.1")))
        prompt = random_prompt(12)
        recorder = LogitRecorder(engine)
        done = run_prompts(engine, {"r": prompt}, {"r": make_plan(("a1", _RANK, _RANK, 1.0))})
        reference = make_seq2seq(dtype=dtype).double()
        apply_dense(reference, [(_adapters("t5-v1.1")["a1"], 1.0)])
        tolerance = 1e-4 if dtype is torch.float32 else 0.1
        assert_close(recorder.of("r"), seq2seq_logits(reference, prompt, done["r"].token_ids), tolerance)

    def test_an_engine_without_lora_leaves_the_layers_alone(self) -> None:
        loaded = load_tiny_seq2seq()
        layers = [type(module).__name__ for module in loaded.model.modules()]
        engine = make_engine(loaded, enable_lora=False)
        assert [type(module).__name__ for module in loaded.model.modules()] == layers
        done = run_prompts(engine, {"r": random_prompt(4)}, {})
        assert len(done["r"].token_ids) == 8


class TestTargets:
    def test_scores_of_distances_are_no_target(self) -> None:
        model = make_seq2seq()
        names = set(target_features(model))
        assert not any("relative_attention_bias" in name for name in names)
        assert {"encoder.embed_tokens", "lm_head", "decoder.block.1.layer.1.EncDecAttention.v"} <= names

    @pytest.mark.parametrize("target", ["lm_head", "encoder.embed_tokens", "decoder.embed_tokens"])
    def test_embeddings_and_the_output_embedding(self, target) -> None:
        shapes = {
            path: (num_in, num_out)
            for path, (num_out, num_in) in target_features(make_seq2seq()).items()
            if path == target
        }
        adapter = make_adapter(shapes, rank=_RANK, scale=0.4)
        engine = make_engine(load_tiny_seq2seq(), InMemoryComponentSource({"a": adapter}))
        recorder = LogitRecorder(engine)
        prompts = {"r": random_prompt(9), "base": random_prompt(14, 1)}
        done = run_prompts(engine, prompts, {"r": make_plan(("a", _RANK, _RANK, 1.0))})
        reference = make_seq2seq()
        for layer in ("encoder.embed_tokens", "decoder.embed_tokens"):
            # Of its own, so that the update of one is not that of all.
            embedding = reference.get_submodule(layer)
            embedding.weight = torch.nn.Parameter(embedding.weight.clone(), requires_grad=False)
        assert_close(recorder.of("base"), seq2seq_logits(reference, prompts["base"], done["base"].token_ids))
        apply_dense(reference, [(adapter, 1.0)])
        assert_close(recorder.of("r"), seq2seq_logits(reference, prompts["r"], done["r"].token_ids))
