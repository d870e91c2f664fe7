"""The shipped pool of trained adapters: the engine's answers are transformers' and PEFT's, letter by letter."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hilora.adapter import DecomposedAdapter, RocBasis
from hilora.decomposition import decompose
from hilora.peft_format import read_peft_adapter
from hilora.routing_plan import GateParameters, RocBudget, RoutingPlan
from services.worker.engine.engine import Engine
from services.worker.models.loader import load_model
from tests.builders.engine import InMemoryComponentSource, Recorder, make_engine, run_until_done, submit

_TESTBED = Path(__file__).parents[3] / "examples" / "testbed"
_MAX_TOKENS = 24

pytestmark = pytest.mark.skipif(not (_TESTBED / "tasks.jsonl").exists(), reason="the testbed is not built")


@cache
def _lines() -> list[dict]:
    """One test prompt of each of twelve families that have an adapter."""
    chosen: dict[str, dict] = {}
    for text in (_TESTBED / "tasks.jsonl").read_text().splitlines():
        line = json.loads(text)
        if line["split"] == "test" and (_TESTBED / "adapters" / line["task"]).is_dir():
            chosen.setdefault(line["family"], line)
    return list(chosen.values())[:12]


@cache
def _adapter(task: str, basis: RocBasis) -> DecomposedAdapter:
    folder = _TESTBED / "adapters" / task
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    return decompose(read_peft_adapter(config=config, tensors=tensors), basis=basis)


def _plan(task: str, basis: RocBasis) -> RoutingPlan:
    rank = _adapter(task, basis).lora_rank
    budget = RocBudget(adapter_id=task, adapter_name=task, lora_rank=rank, num_rocs=rank)
    return RoutingPlan(budgets=(budget,), gate=GateParameters(basis=basis))


@cache
def _expected() -> dict[str, str]:
    """What transformers and PEFT generate for each task with its own adapter, and for the base."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    loaded = load_model(str(_TESTBED / "base"), device="cpu")
    answers = {}
    for line in _lines():
        base = AutoModelForCausalLM.from_pretrained(_TESTBED / "base", dtype=torch.float32)
        model = PeftModel.from_pretrained(base, _TESTBED / "adapters" / line["task"]).eval()
        ids = torch.tensor([loaded.tokenizer(line["prompt"])["input_ids"]])
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=_MAX_TOKENS, do_sample=False
            )
        answers[line["task"]] = loaded.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    return answers


def _engine(basis: RocBasis) -> Engine:
    adapters = {line["task"]: _adapter(line["task"], basis) for line in _lines()}
    return make_engine(
        load_model(str(_TESTBED / "base"), device="cpu"), InMemoryComponentSource(adapters), roc_pool_bytes=64 << 20
    )


def _ask(engine: Engine, line: dict, basis: RocBasis, name: str) -> Recorder:
    prompt = engine._loaded.tokenizer(line["prompt"])["input_ids"]
    return submit(engine, name, prompt, plan=_plan(line["task"], basis), max_tokens=_MAX_TOKENS, ignore_eos=False)


@pytest.mark.parametrize("basis", list(RocBasis))
class TestPinnedAdapters:
    def test_twelve_tasks_in_one_batch_equal_peft(self, basis) -> None:
        engine = _engine(basis)
        recorders = {line["task"]: _ask(engine, line, basis, line["task"]) for line in _lines()}
        run_until_done(engine, *recorders.values())
        engine.check_integrity()
        assert {task: recorder.text for task, recorder in recorders.items()} == _expected()

    def test_each_task_alone_equals_peft(self, basis) -> None:
        engine = _engine(basis)
        for line in _lines()[:4]:
            recorder = _ask(engine, line, basis, line["task"])
            run_until_done(engine, recorder)
            assert recorder.text == _expected()[line["task"]]


class TestAnswers:
    def test_trained_adapters_know_their_tasks(self) -> None:
        """Guards the comparison above: equal texts would prove little if the answers were noise."""
        right = [_expected()[line["task"]].strip() == line["answer"] for line in _lines()]
        assert sum(right) >= len(right) - 1
