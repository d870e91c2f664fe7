"""A worker whose base has an encoder, over gRPC."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from hilora.errors import InvalidSamplingParams
from hilora_rpc.v1 import worker_pb2
from services.common.rpc_client import translated_errors
from tests.builders.models import linear_shapes
from tests.builders.seq2seq import save_seq2seq_base

_PROMPT = "translate English to German: hello there"


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worker") / "tiny-t5"
    save_seq2seq_base(folder)
    return folder


@pytest.fixture(scope="session")
def shapes(base_folder: Path) -> dict[str, tuple[int, int]]:
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(base_folder)
    return linear_shapes(model, suffixes=(".q", ".k", ".v", ".o", ".wi_0", ".wi_1", ".wo"))


def _request(request_id: str, plan=None, prompt: str = _PROMPT, **sampling) -> worker_pb2.GenerateRequest:
    settings = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 10, **sampling}
    return worker_pb2.GenerateRequest(
        request_id=request_id, prompt=prompt, plan=plan, sampling=worker_pb2.SamplingParams(**settings)
    )


async def _generate(stack, request: worker_pb2.GenerateRequest) -> list[worker_pb2.GenerateEvent]:
    with translated_errors("worker"):
        return [event async for event in stack.stub.Generate(request)]


def _tokens(events) -> list[int]:
    return [token for event in events for token in event.delta.token_ids]


async def test_the_base_answers_as_transformers_does(stack, base_folder) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    events = await _generate(stack, _request("r", ignore_eos=False))
    model = AutoModelForSeq2SeqLM.from_pretrained(base_folder, dtype=torch.float32)
    token_ids = AutoTokenizer.from_pretrained(base_folder)(_PROMPT)["input_ids"]
    expected = model.generate(torch.tensor([token_ids]), max_new_tokens=10, do_sample=False)[0, 1:].tolist()
    assert _tokens(events) == expected
    assert events[0].started.num_prompt_tokens == len(token_ids)


async def test_plans_at_the_same_time_equal_each_alone(stack) -> None:
    plans = {"a": stack.plan("a", num_rocs=2), "bc": stack.plan("b", "c", num_rocs=1), "base": None}
    alone = {name: _tokens(await _generate(stack, _request(name, plan))) for name, plan in plans.items()}
    together = await asyncio.gather(*(_generate(stack, _request(name, plan)) for name, plan in plans.items()))
    assert [_tokens(events) for events in together] == list(alone.values())
    assert len({tuple(tokens) for tokens in alone.values()}) == 3
    assert [budget.adapter_name for budget in together[1][-1].finished.budgets_used] == ["b", "c"]


async def test_what_an_encoder_cannot_tell_is_refused(stack) -> None:
    with pytest.raises(InvalidSamplingParams):
        await _generate(stack, _request("r", prompt_logprobs=1))
