"""What the engine computes, against transformers, PEFT's arithmetic and itself (T3, T4, T13, T14)."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from hilora.routing_plan import GateScope, RocScore, RoutingPlan
from services.worker.engine.engine import Engine
from tests.builders.engine import InMemoryComponentSource, Recorder, make_engine, make_plan, run_until_done, submit
from tests.builders.logits import LogitRecorder
from tests.builders.models import ARCHITECTURES, apply_dense, linear_shapes, load_tiny, make_adapter, make_model

_RANK = 4
# transformers computes softcapped attention with a float32 softmax, whatever the model's type.
_TOLERANCE = dict.fromkeys(ARCHITECTURES, 1e-9) | {"gemma2": 5e-6}


def _prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 96, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@cache
def _adapters(architecture: str = "llama") -> dict:
    shapes = linear_shapes(make_model(architecture))
    return {f"a{idx}": make_adapter(shapes, rank=_RANK, seed=idx) for idx in range(8)}


def _engine(architecture: str = "llama", **config) -> Engine:
    return make_engine(
        load_tiny(architecture, dtype=torch.float64), InMemoryComponentSource(_adapters(architecture)), **config
    )


def _run(
    engine: Engine, prompts: dict[str, list[int]], plans: dict[str, RoutingPlan], **sampling
) -> dict[str, Recorder]:
    recorders = {
        name: submit(engine, name, prompt, plan=plans.get(name), **sampling) for name, prompt in prompts.items()
    }
    run_until_done(engine, *recorders.values())
    engine.check_integrity()
    return recorders


def _full_forward_logits(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Logits of every position that the engine sampled from, by one pass over the whole sequence without a cache."""
    ids = torch.tensor([prompt + completion[:-1]])
    with torch.inference_mode():
        return model(input_ids=ids).logits[0, len(prompt) - 1 :]


def _assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-9) -> None:
    assert (found - expected).abs().max().item() <= tolerance * expected.abs().max().item()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("layout", ["slots", "pages"])
class TestAgainstTransformers:
    def test_cached_decoding_equals_the_full_forward_pass(self, architecture, layout) -> None:
        engine = _engine(architecture, max_num_batched_tokens=13, kv_layout=layout)
        recorder = LogitRecorder(engine)
        prompts = {f"r{length}": _prompt(length, length) for length in (1, 5, 16, 40)}
        done = _run(engine, prompts, {})
        reference = make_model(architecture, dtype=torch.float64)
        for name, prompt in prompts.items():
            expected = _full_forward_logits(reference, prompt, done[name].token_ids)
            _assert_close(recorder.of(name), expected, _TOLERANCE[architecture])

    def test_one_adapter_with_full_budget_equals_its_dense_update(self, architecture, layout) -> None:
        engine = _engine(architecture, max_num_batched_tokens=13, kv_layout=layout)
        recorder = LogitRecorder(engine)
        prompt = _prompt(20)
        done = _run(engine, {"r": prompt, "base": prompt}, {"r": make_plan(("a1", _RANK, _RANK, 1.0))})
        reference = make_model(architecture, dtype=torch.float64)
        apply_dense(reference, [(_adapters(architecture)["a1"], 1.0)])
        expected = _full_forward_logits(reference, prompt, done["r"].token_ids)
        _assert_close(recorder.of("r"), expected, _TOLERANCE[architecture])


class TestAgainstPeft:
    def test_full_budget_equals_pefts_own_output(self) -> None:
        from peft import LoraConfig, get_peft_model

        engine = _engine()
        recorder = LogitRecorder(engine)
        prompt = _prompt(20)
        done = _run(engine, {"r": prompt}, {"r": make_plan(("a2", _RANK, _RANK, 1.0))})
        targets = [path.rpartition(".")[2] for path in _adapters()["a2"].modules]
        config = LoraConfig(r=_RANK, lora_alpha=2 * _RANK, target_modules=sorted(set(targets)))
        model = get_peft_model(make_model(dtype=torch.float64), config)
        with torch.no_grad():
            for path, rocs in _adapters()["a2"].modules.items():
                layer = model.base_model.model.get_submodule(path)
                layer.lora_A["default"].weight.copy_(rocs.a_RD)
                layer.lora_B["default"].weight.copy_(rocs.b_RO.T / 2)
        expected = _full_forward_logits(model.eval(), prompt, done["r"].token_ids)
        _assert_close(recorder.of("r"), expected)


class TestZeroBudget:
    def test_it_is_the_base_model_bit_for_bit(self) -> None:
        prompt = _prompt(20)
        logits = []
        for plan in (make_plan(("a0", _RANK, 0, 1.0), ("a1", _RANK, 0, 0.5)), None):
            engine = _engine()
            recorder = LogitRecorder(engine)
            _run(engine, {"r": prompt}, {"r": plan} if plan else {})
            logits.append(recorder.of("r"))
        assert torch.equal(*logits)

    def test_it_is_the_base_model_bit_for_bit_beside_requests_with_rocs(self) -> None:
        prompts = {name: _prompt(20, seed) for seed, name in enumerate(("base", "other"))}
        logits = []
        for other in (make_plan(("a0", _RANK, 2, 1.0)), None):
            engine = _engine()
            # Resident beforehand, so that both runs batch the same rows in the same steps.
            _run(engine, {"warm": _prompt(3)}, {"warm": make_plan(("a0", _RANK, 2, 1.0))})
            recorder = LogitRecorder(engine)
            _run(engine, prompts, {"other": other} if other else {})
            logits.append(recorder.of("base"))
        assert torch.equal(*logits)

    def test_nothing_is_fetched_for_it(self) -> None:
        source = InMemoryComponentSource()
        engine = make_engine(load_tiny(), source)
        recorder = submit(engine, "r", _prompt(4), plan=make_plan(("nobody", _RANK, 0, 1.0)))
        run_until_done(engine, recorder)
        assert source.num_fetches == 0
        assert recorder.finished.budgets_used == ()


class TestBatching:
    def _plans(self) -> dict[str, RoutingPlan]:
        plans = {}
        for idx in range(12):
            members = [
                (f"a{(idx + place) % 8}", _RANK, 1 + (idx + place) % _RANK, 1.0 / (1 + place)) for place in range(3)
            ]
            plans[f"r{idx}"] = make_plan(
                *members[: 1 + idx % 3],
                scope=list(GateScope)[idx % 2],
                score=list(RocScore)[idx // 2 % 2],
                eta=0.7,
            )
        plans["r11"] = RoutingPlan()
        return plans

    def test_twelve_plans_in_one_batch_equal_each_alone(self) -> None:
        plans = self._plans()
        assert len({plan.digest for plan in plans.values()}) == 12
        prompts = {name: _prompt(3 + 5 * idx, idx) for idx, name in enumerate(plans)}
        together = _engine()
        recorder = LogitRecorder(together)
        done = _run(together, prompts, plans)
        for name, prompt in prompts.items():
            alone = _engine()
            alone_recorder = LogitRecorder(alone)
            alone_done = _run(alone, {name: prompt}, plans)
            _assert_close(recorder.of(name), alone_recorder.of(name))
            assert done[name].token_ids == alone_done[name].token_ids

    @pytest.mark.parametrize("tokens_per_step", [1, 3, 7, 32])
    def test_a_prompt_in_chunks_equals_the_prompt_at_once(self, tokens_per_step) -> None:
        prompt = _prompt(33)
        plans = {"r": make_plan(("a0", _RANK, 2, 0.5), ("a3", _RANK, 1, 0.5))}
        logits = []
        for limit in (tokens_per_step, 64):
            engine = _engine(max_num_batched_tokens=limit, max_num_seqs=1)
            recorder = LogitRecorder(engine)
            _run(engine, {"r": prompt}, plans)
            logits.append(recorder.of("r"))
        _assert_close(*logits)

    def test_slots_far_apart_are_read_apart(self) -> None:
        engine = _engine(max_num_batched_tokens=400)
        recorder = LogitRecorder(engine)
        prompts = {f"r{idx}": _prompt(10, idx) for idx in range(12)}
        recorders = {}
        for idx, (name, prompt) in enumerate(prompts.items()):
            recorders[name] = submit(engine, name, prompt, max_tokens=20 if idx in {0, 11} else 1)
        run_until_done(engine, *recorders.values())
        reference = make_model(dtype=torch.float64)
        for name in ("r0", "r11"):
            expected = _full_forward_logits(reference, prompts[name], recorders[name].token_ids)
            _assert_close(recorder.of(name), expected)

    def test_a_seed_decides_the_answer_whatever_else_runs(self) -> None:
        prompt = _prompt(9)
        sampling = {"temperature": 0.8, "top_p": 0.9, "seed": 7, "max_tokens": 12}
        alone = _engine()
        first = submit(alone, "r", prompt, **sampling)
        run_until_done(alone, first)
        crowded = _engine(max_num_batched_tokens=14)
        others = [submit(crowded, f"o{idx}", _prompt(6, idx), temperature=1.0, seed=idx) for idx in range(5)]
        second = submit(crowded, "r", prompt, **sampling)
        run_until_done(crowded, second, *others)
        assert first.token_ids == second.token_ids


class TestOutputEmbedding:
    def test_an_adapter_on_the_output_embedding_acts(self) -> None:
        loaded = load_tiny(dtype=torch.float64)
        shapes = linear_shapes(loaded.model, suffixes=("lm_head", "q_proj"))
        adapter = make_adapter(shapes, rank=3, seed=4)
        engine = make_engine(loaded, InMemoryComponentSource({"head": adapter}), max_num_batched_tokens=16)
        recorder = LogitRecorder(engine)
        prompts = {"r": _prompt(20), "base": _prompt(7, 3)}
        done = _run(engine, prompts, {"r": make_plan(("head", 3, 3, 1.0))})
        reference = make_model(dtype=torch.float64)
        base = _full_forward_logits(reference, prompts["base"], done["base"].token_ids)
        _assert_close(recorder.of("base"), base)
        apply_dense(reference, [(adapter, 1.0)])
        expected = _full_forward_logits(reference, prompts["r"], done["r"].token_ids)
        _assert_close(recorder.of("r"), expected)
