"""What the model thinks of a prompt, through the whole engine."""

from __future__ import annotations

import pytest
import torch

from services.worker.engine.output.events import TextDelta
from tests.builders.engine import InMemoryComponentSource, make_engine, make_plan, run_until_done, submit
from tests.builders.models import apply_dense, linear_shapes, load_tiny, make_adapter, make_model

_PROMPT = torch.randint(3, 96, (21,), generator=torch.Generator().manual_seed(7)).tolist()


def _told(recorder) -> list[float]:
    deltas = [event for event in recorder.events if isinstance(event, TextDelta)]
    assert not any(delta.prompt_logprobs for delta in deltas[1:])
    return [position.chosen.logprob for position in deltas[0].prompt_logprobs]


def _expected(model) -> list[float]:
    with torch.inference_mode():
        logprobs_TV = model(input_ids=torch.tensor([_PROMPT])).logits[0].log_softmax(-1)
    return [logprobs_TV[row, token].item() for row, token in enumerate(_PROMPT[1:])]


@pytest.fixture
def adapter():
    return make_adapter(linear_shapes(make_model(), suffixes=("_proj", "lm_head")), seed=1)


@pytest.mark.parametrize("max_num_batched_tokens", [4, 64])
def test_they_are_those_of_a_plain_forward_pass(adapter, max_num_batched_tokens) -> None:
    engine = make_engine(
        load_tiny(dtype=torch.float64),
        InMemoryComponentSource({"a": adapter}),
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_seqs=3,
    )
    other = submit(engine, "other", [9] * 11, max_tokens=30)
    base = submit(engine, "base", _PROMPT, prompt_logprobs=0)
    tuned = submit(engine, "tuned", _PROMPT, prompt_logprobs=3, plan=make_plan(("a", 4, 4, 1.0)))
    run_until_done(engine, other, base, tuned)
    model = make_model(dtype=torch.float64)
    assert _told(base) == pytest.approx(_expected(model), abs=1e-6)
    apply_dense(model, [(adapter, 1.0)])
    assert _told(tuned) == pytest.approx(_expected(model), abs=1e-6)
    assert {len(position.top) for position in tuned.events[1].prompt_logprobs} == {3}
    alone = make_engine(load_tiny(dtype=torch.float64))
    quiet = submit(alone, "quiet", _PROMPT)
    run_until_done(alone, quiet)
    assert quiet.token_ids == base.token_ids


def test_a_prompt_of_one_token_has_none() -> None:
    engine = make_engine(load_tiny())
    recorder = submit(engine, "r", [5], prompt_logprobs=2)
    run_until_done(engine, recorder)
    assert recorder.finished.num_completion_tokens == 8
    assert _told(recorder) == []


def test_a_cached_prefix_is_computed_again() -> None:
    engine = make_engine(load_tiny(dtype=torch.float64), enable_prefix_cache=True)
    run_until_done(engine, submit(engine, "first", _PROMPT))
    again = submit(engine, "again", _PROMPT, prompt_logprobs=0)
    cached = submit(engine, "cached", _PROMPT)
    run_until_done(engine, again, cached)
    assert len(_told(again)) == len(_PROMPT) - 1
    assert (again.finished.num_cached_tokens, cached.finished.num_cached_tokens) == (0, len(_PROMPT) - 1)
    assert engine.stats().counters.num_cached_tokens == len(_PROMPT) - 1


def test_prompts_that_are_not_finite_end_their_request_alone(adapter) -> None:
    for rocs in adapter.modules.values():
        rocs.b_RO[:] = float("nan")
    engine = make_engine(load_tiny(), InMemoryComponentSource({"a": adapter}), max_num_batched_tokens=16)
    healthy = submit(engine, "h", _PROMPT, max_tokens=4)
    faulty = submit(engine, "f", _PROMPT, prompt_logprobs=0, plan=make_plan(("a", 4, 4, 1.0)))
    run_until_done(engine, healthy, faulty)
    assert faulty.error.code == "non_finite_logits"
    assert healthy.finished.num_completion_tokens == 4
    engine.check_integrity()
