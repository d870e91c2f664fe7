"""Plans that read a prompt with other factors than they write its answer with, against the definition in loops."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora.errors import InvalidInput
from hilora.reference import reference_forward
from hilora.routing_plan import GateScope, RoutingPlan
from services.worker.engine.engine import Engine
from services.worker.engine.sampling.sampling_params import SamplingParams
from services.worker.engine.scheduling.request import EngineRequest
from tests.builders.components import InMemoryComponentSource
from tests.builders.engine import Recorder, make_engine, make_plan, run_until_done, submit
from tests.builders.logits import LogitRecorder, assert_close, random_prompt, run_prompts
from tests.builders.models import apply_dense, linear_shapes, load_tiny, make_adapter, make_model
from tests.builders.seq2seq import load_tiny_seq2seq, make_seq2seq, seq2seq_logits

_RANK = 4
_SUFFIXES = ("_proj", "lm_head")


@cache
def _adapters(architecture: str = "llama") -> dict[str, Any]:
    shapes = linear_shapes(make_model(architecture), suffixes=_SUFFIXES)
    return {f"a{idx}": make_adapter(shapes, rank=_RANK, seed=idx, scale=0.15) for idx in range(4)}


def _engine(architecture: str = "llama", **config: Any) -> Engine:
    return make_engine(
        load_tiny(architecture, dtype=torch.float64),
        InMemoryComponentSource(_adapters(architecture)),
        **{"max_num_seqs": min(12, config.get("max_num_batched_tokens", 12)), **config},
    )


def _two_phases(*budgets: tuple[str, int, float, float], **gate: Any) -> RoutingPlan:
    """A plan from `(adapter_id, num_rocs, reading_weight, weight)` each."""
    plan = make_plan(*((name, _RANK, num_rocs, weight) for name, num_rocs, _, weight in budgets), **gate)
    return replace(
        plan,
        budgets=tuple(
            replace(budget, reading_weight=reading)
            for budget, (_, _, reading, _) in zip(plan.budgets, budgets, strict=True)
        ),
    )


_BOTH_READ = _two_phases(("a0", 4, 1.0, 1.0), ("a1", 4, 1.0, 0.0))
_PARTS = _two_phases(("a1", 2, 0.4, 0.9), ("a2", 3, -0.5, 0.3), scope=GateScope.GLOBAL)
_BASE_WRITES = _two_phases(("a3", 2, 0.8, 0.0))
_ONE_PHASE = make_plan(("a2", _RANK, 3, 0.7))


def _expected(plan: RoutingPlan, prompt: list[int], answer: list[int], architecture: str = "llama") -> torch.Tensor:
    """Logits of the answer's positions by one pass, each token of each layer by the equations of its own phase."""
    model = make_model(architecture, dtype=torch.float64)
    adapters, num_read = _adapters(architecture), len(prompt) - 1

    def replaced(module: Any, inputs: Any, output: torch.Tensor, *, path: str) -> torch.Tensor:
        x_TD, rows = inputs[0][0], []
        # The output embedding sees all tokens here, as every other layer does.
        for phase, part in ((plan.reading, x_TD[:num_read]), (plan.writing, x_TD[num_read:])):
            rocs = [adapters[budget.adapter_id].modules[path] for budget in phase.budgets]
            rows.append(
                reference_forward(
                    part,
                    w0_OD=module.weight,
                    bias_O=module.bias,
                    candidates=[
                        replace(one, a_RD=one.a_RD.to(torch.float64), b_RO=one.b_RO.to(torch.float64)) for one in rocs
                    ],
                    budgets=[budget.num_rocs_in(one.num_rocs) for budget, one in zip(phase.budgets, rocs, strict=True)],
                    weights=[budget.weight for budget in phase.budgets],
                    gate=phase.gate,
                )
            )
        return torch.cat(rows)[None]

    for path in adapters["a0"].modules:
        model.get_submodule(path).register_forward_hook(partial(replaced, path=path))
    with torch.inference_mode():
        return model(input_ids=torch.tensor([prompt + answer[:-1]])).logits[0, num_read:]


class TestAgainstTheDefinition:
    @pytest.mark.parametrize("layout", ["slots", "pages"])
    @pytest.mark.parametrize("max_num_batched_tokens", [7, 64])
    def test_a_batch_of_plans_of_both_kinds(self, layout, max_num_batched_tokens) -> None:
        engine = _engine(max_num_batched_tokens=max_num_batched_tokens, kv_layout=layout)
        recorder = LogitRecorder(engine)
        plans = {"both": _BOTH_READ, "parts": _PARTS, "mute": _BASE_WRITES, "one": _ONE_PHASE, "none": RoutingPlan()}
        prompts = {name: random_prompt(length, length) for name, length in zip(plans, (17, 8, 1, 12, 9), strict=True)}
        prompts["mute"] = random_prompt(6, 6)
        plans["short"], prompts["short"] = _BOTH_READ, random_prompt(1, 1)
        done = run_prompts(engine, prompts, plans, max_tokens=4)
        for name, plan in plans.items():
            assert_close(recorder.of(name), _expected(plan, prompts[name], done[name].token_ids))

    def test_it_makes_a_difference_in_either_phase(self) -> None:
        prompt, answers = random_prompt(17, 17), []
        for plan in (_BOTH_READ, _BOTH_READ.reading, _BOTH_READ.writing):
            engine = _engine()
            recorder = LogitRecorder(engine)
            run_prompts(engine, {"r": prompt}, {"r": plan}, max_tokens=1)
            answers.append(recorder.of("r"))
        assert not torch.allclose(answers[0], answers[1])
        assert not torch.allclose(answers[0], answers[2])

    @settings(max_examples=8, deadline=None)
    @given(weight=st.floats(-1.0, 1.5), length=st.integers(1, 20), step=st.integers(1, 24))
    def test_equal_phases_are_one(self, weight, length, step) -> None:
        prompt, logits = random_prompt(length, length), []
        for plan in (_two_phases(("a0", 2, weight, weight)), make_plan(("a0", _RANK, 2, weight))):
            engine = _engine(max_num_batched_tokens=step)
            recorder = LogitRecorder(engine)
            run_prompts(engine, {"r": prompt}, {"r": plan}, max_tokens=3)
            logits.append(recorder.of("r"))
        assert_close(*logits)


class TestMemory:
    @pytest.mark.parametrize("layout", ["slots", "pages"])
    def test_a_conversation_shares_what_was_read_and_nothing_that_was_written(self, layout) -> None:
        engine = _engine(kv_layout=layout, enable_prefix_cache=True, max_num_seqs=3)
        recorder = LogitRecorder(engine)
        prompt = random_prompt(40, 1)
        first = run_prompts(engine, {"first": prompt}, {"first": _BOTH_READ}, max_tokens=12)["first"]
        longer = [*prompt, *first.token_ids, 5, 6]
        second = run_prompts(engine, {"second": longer}, {"second": _BOTH_READ}, max_tokens=3)["second"]
        assert 32 <= second.finished.num_cached_tokens <= len(prompt) - 1
        assert_close(recorder.of("second"), _expected(_BOTH_READ, longer, second.token_ids))

    @pytest.mark.parametrize("layout", ["slots", "pages"])
    def test_what_is_read_is_shared_with_the_plan_that_has_that_phase_throughout(self, layout) -> None:
        engine = _engine(kv_layout=layout, enable_prefix_cache=True, max_num_seqs=3)
        recorder = LogitRecorder(engine)
        prompt = random_prompt(40, 1)
        run_prompts(engine, {"first": prompt}, {"first": _BOTH_READ.reading}, max_tokens=2)
        second = run_prompts(engine, {"second": prompt}, {"second": _BOTH_READ}, max_tokens=3)["second"]
        assert second.finished.num_cached_tokens >= 32
        assert_close(recorder.of("second"), _expected(_BOTH_READ, prompt, second.token_ids))

    @pytest.mark.parametrize("enable_prefix_cache", [False, True])
    def test_a_request_that_gave_its_memory_back_is_computed_again_in_its_phases(self, enable_prefix_cache) -> None:
        engine = _engine(kv_layout="pages", kv_cache_bytes=8 * 8192, enable_prefix_cache=enable_prefix_cache)
        recorder = LogitRecorder(engine)
        prompts = {f"r{length}": random_prompt(length, length) for length in (3, 17, 30, 24)}
        plans = dict(zip(prompts, (_PARTS, _BOTH_READ, _ONE_PHASE, _BOTH_READ), strict=True))
        done = run_prompts(engine, prompts, plans, max_tokens=40)
        assert engine.stats().counters.num_preemptions > 0
        for name, plan in plans.items():
            assert_close(recorder.of(name), _expected(plan, prompts[name], done[name].token_ids))


class TestAnswersThatComeWithTheirPrompts:
    """A caller that wants an answer judged sends it with its prompt, and says where it begins."""

    def _submit(self, engine: Engine, num_read_tokens: int | None, *, num_tokens: int = 20) -> Recorder:
        recorder = Recorder()
        request = EngineRequest(
            request_id="r",
            prompt_token_ids=tuple(random_prompt(num_tokens, 3)),
            sampling=SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, prompt_logprobs=1),
            plan=_BOTH_READ,
            num_read_tokens=num_read_tokens,
        )
        engine.submit(request, recorder)
        return recorder

    @pytest.mark.parametrize("num_read_tokens", [0, 11, 19])
    def test_the_judgement_is_the_two_phases(self, num_read_tokens) -> None:
        engine = _engine(max_num_batched_tokens=8)
        recorder = self._submit(engine, num_read_tokens)
        run_until_done(engine, recorder)
        ids = random_prompt(20, 3)
        prompt, answer = ids[: num_read_tokens + 1], [*ids[num_read_tokens + 1 :], recorder.token_ids[0]]
        expected = torch.log_softmax(_expected(_BOTH_READ, prompt, answer), dim=-1)
        found = [one.chosen.logprob for one in recorder.events[1].prompt_logprobs[num_read_tokens:]]
        wanted = [float(row[token_id]) for row, token_id in zip(expected, answer[:-1], strict=False)]
        assert found == pytest.approx(wanted, abs=1e-5)

    @pytest.mark.parametrize("num_read_tokens", [-1, 20])
    def test_a_turn_outside_the_prompt_is_refused(self, num_read_tokens) -> None:
        with pytest.raises(InvalidInput) as caught:
            self._submit(_engine(), num_read_tokens)
        assert caught.value.code == "invalid_turn"


def test_an_encoder_reads_and_its_decoder_writes() -> None:
    shapes = linear_shapes(make_seq2seq("t5-v1.1"), suffixes=(".q", ".k", ".v", ".o", ".wi_0", ".wi_1", ".wo"))
    adapters = {f"a{idx}": make_adapter(shapes, rank=_RANK, seed=idx, scale=0.15) for idx in range(2)}
    engine = make_engine(load_tiny_seq2seq("t5-v1.1"), InMemoryComponentSource(adapters))
    recorder = LogitRecorder(engine)
    prompt = random_prompt(20)
    done = run_prompts(engine, {"r": prompt}, {"r": _BOTH_READ}, max_tokens=5)["r"]
    reference = make_seq2seq("t5-v1.1")
    # The keys and values that the decoder has of the prompt are the prompt's.
    of_prompt = {
        path for path in shapes if path.startswith("encoder.") or path.endswith(("Attention.k", "Attention.v"))
    } - {path for path in shapes if path.startswith("decoder.") and ".SelfAttention." in path}
    for name, is_reading in (("a0", True), ("a1", True), ("a0", False)):
        own = {path: rocs for path, rocs in adapters[name].modules.items() if (path in of_prompt) is is_reading}
        apply_dense(reference, [(replace(adapters[name], modules=own), 1.0)])
    assert_close(recorder.of("r"), seq2seq_logits(reference, prompt, done.token_ids))


class TestExplained:
    @pytest.mark.parametrize("max_num_batched_tokens", [7, 64])
    def test_each_token_counts_what_acts_in_its_phase(self, max_num_batched_tokens) -> None:
        engine = _engine(max_num_batched_tokens=max_num_batched_tokens)
        prompt = random_prompt(17, 17)
        recorder = submit(engine, "r", prompt, plan=_BOTH_READ, explains_gating=True, max_tokens=4)
        run_until_done(engine, recorder)
        engine.check_integrity()
        for module in recorder.finished.gating:
            if module.module_path == "lm_head":
                # It is asked for the answer's tokens only.
                continue
            fired = {adapter.adapter_id: adapter.num_tokens_fired for adapter in module.adapters}
            assert fired == {"a0": (20,) * _RANK, "a1": (16,) * _RANK}

    def test_a_phase_of_the_base_alone_counts_nothing(self) -> None:
        engine = _engine()
        recorder = submit(engine, "r", random_prompt(9, 9), plan=_BASE_WRITES, explains_gating=True, max_tokens=4)
        run_until_done(engine, recorder)
        fired = {sum(one.num_tokens_fired) for module in recorder.finished.gating for one in module.adapters}
        assert fired == {2 * 8, 0}
