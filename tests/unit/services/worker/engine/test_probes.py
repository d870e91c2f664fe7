"""What a layer is given at a prompt's last token, asked beside requests that run."""

from __future__ import annotations

import pytest
import torch

from hilora.errors import GenerationFailed, InvalidInput, QueueFull, Unavailable
from hilora.routing_plan import PlanPreparation, PreparationMethod, RocBudget, RoutingPlan
from tests.builders.engine import make_engine, run_until_done, submit
from tests.builders.logits import random_prompt
from tests.builders.models import load_tiny, make_model
from tests.builders.seq2seq import load_tiny_seq2seq

LAYER = "model.layers.1.self_attn.q_proj"


def heard(prompt: list[int], path: str = LAYER) -> torch.Tensor:
    model = make_model(dtype=torch.float64)
    found = []
    model.get_submodule(path).register_forward_pre_hook(lambda _module, inputs: found.append(inputs[0][0, -1]))
    with torch.inference_mode():
        model(input_ids=torch.tensor([prompt]))
    return found[0]


def engine_of(**config):
    return make_engine(load_tiny(dtype=torch.float64), **config)


@pytest.mark.parametrize("length", [1, 13, 40])
def test_it_is_what_transformers_gives_the_layer(length):
    engine = engine_of(max_num_batched_tokens=13)
    prompt = random_prompt(length)
    answer = engine.probes.ask(prompt, module_path=LAYER)
    beside = submit(engine, "r", random_prompt(9, seed=1), max_tokens=5)
    run_until_done(engine, beside)
    while not answer.done():
        engine.run_step()
    torch.testing.assert_close(answer.result(), heard(prompt), rtol=1e-9, atol=1e-9)
    engine.check_integrity()


def test_requests_beside_it_are_answered_the_same():
    prompt = random_prompt(20)
    alone = submit(engine := engine_of(max_num_batched_tokens=13), "r", prompt, max_tokens=8)
    run_until_done(engine, alone)
    other = engine_of(max_num_batched_tokens=13)
    answers = [other.probes.ask(random_prompt(30, seed=seed), module_path=LAYER) for seed in range(3)]
    together = submit(other, "r", prompt, max_tokens=8)
    run_until_done(other, together)
    assert together.token_ids == alone.token_ids
    while not all(answer.done() for answer in answers):
        other.run_step()


def test_a_cancelled_question_is_not_read_on():
    engine = engine_of(max_num_batched_tokens=13)
    first = engine.probes.ask(random_prompt(40), module_path=LAYER)
    second = engine.probes.ask(random_prompt(5), module_path=LAYER)
    engine.run_step()
    assert first.cancel()
    engine.run_step()
    assert second.done()
    assert not engine.run_step()


def test_bad_prompts_and_full_queues_are_refused():
    engine = engine_of(max_waiting=2)
    for prompt, code in (([], "empty_prompt"), ([5] * 200, "prompt_too_long"), ([10_000], "invalid_token_id")):
        with pytest.raises(InvalidInput) as raised:
            engine.probes.ask(prompt, module_path=LAYER)
        assert raised.value.code == code
    for _ in range(2):
        engine.probes.ask([5], module_path=LAYER)
    with pytest.raises(QueueFull):
        engine.probes.ask([5], module_path=LAYER)


def test_an_error_ends_that_question_alone():
    engine = engine_of()
    wrong = engine.probes.ask([5], module_path="no.such.layer")
    right = engine.probes.ask([5], module_path=LAYER)
    engine.run_step()
    engine.run_step()
    assert isinstance(wrong.exception(timeout=0), GenerationFailed)
    assert right.result(timeout=0).shape == (32,)


def test_a_stopped_engine_answers_with_an_error_and_takes_no_more():
    engine = engine_of()
    # The last step reads one of them.
    answers = [engine.probes.ask([5], module_path=LAYER) for _ in range(3)]
    engine.stop(drain_seconds=0)
    assert [isinstance(answer.exception(timeout=0), Unavailable) for answer in answers] == [False, True, True]
    with pytest.raises(Unavailable) as raised:
        engine.probes.ask([5], module_path=LAYER)
    assert raised.value.code == "worker_draining"


def test_models_with_an_encoder_and_engines_without_adapters_cannot_be_asked():
    for engine in (make_engine(load_tiny_seq2seq()), engine_of(enable_lora=False)):
        with pytest.raises(InvalidInput) as raised:
            engine.probes.ask([5], module_path=LAYER)
        assert raised.value.code == "probe_unsupported"


def test_the_engine_refuses_a_plan_that_nobody_prepared():
    budget = RocBudget(adapter_id="a", adapter_name="a", lora_rank=4, num_rocs=4)
    plan = RoutingPlan(budgets=(budget,), preparation=PlanPreparation(method=PreparationMethod.LEGO))
    with pytest.raises(InvalidInput) as raised:
        submit(engine_of(), "r", [5], plan=plan)
    assert raised.value.code == "unprepared_plan"
