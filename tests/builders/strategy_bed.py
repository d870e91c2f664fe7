"""A part of the shipped testbed under an engine, and the same once more as plain dense matrices.

The product's side: profiles, a strategy's plan, what a worker makes of it, logits. The other side shares nothing with
it but the files: `delta W` from PEFT's tensors by the definition, and a transformers model whose layers are hooked.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from hilora.adapter import DecomposedAdapter, RocBasis, adapter_id_of
from hilora.decomposition import decompose
from hilora.errors import UnknownAdapter
from hilora.learned_gate import LearnedGate
from hilora.routing_plan import RoutingDecision, RoutingPlan
from hilora.sequence_routing import AdapterProfile, SequenceRouter
from hilora.strategies import RoutingQuestion, strategy_named
from hilora_lab.evaluation.gated_model import read_adapter_folder
from hilora_lab.testbed.folder import read_testbed
from services.worker.infra.merged_components import MergedComponents
from services.worker.models.loader import LoadedModel
from services.worker.preparation import PlanPreparer
from tests.builders.engine import make_engine, submit
from tests.builders.gates import InMemoryGateSource
from tests.builders.logits import LogitRecorder, full_forward_logits
from tests.builders.patience import patient

TESTBED = Path(__file__).resolve().parents[2] / "examples" / "testbed"
NAMES = tuple(
    f"{family}-{domain}" for family in ("double", "reverse", "sort") for domain in ("capitals", "digits", "letters")
)
DIMENSION = 96
MAX_TOKENS = 4
TOLERANCE = 1e-4
"""On logits."""

Update = Callable[[str, torch.Tensor], torch.Tensor | None]
"""What is added to a layer's output, by the layer's path and its inputs `[T, D]`."""


def embed(text: str) -> np.ndarray:
    """Words and pairs of words, hashed: a deterministic encoder that costs nothing."""
    words = text.split()
    z_E = np.zeros(DIMENSION)
    for piece in [*words, *map(" ".join, pairwise(words))]:
        digest = zlib.crc32(piece.encode())
        z_E[digest % DIMENSION] += 1.0 if digest & 4096 else -1.0
    return (z_E / np.linalg.norm(z_E)).astype(np.float32)


@cache
def samples() -> dict[str, np.ndarray]:
    """Embedded sample texts by adapter name."""
    testbed = read_testbed(TESTBED)
    return {name: np.stack([embed(line.prompt) for line in testbed.lines_of(name, "fit")]) for name in NAMES}


@cache
def texts() -> tuple[str, ...]:
    """Prompts to answer: of tasks in the pool, and one of a task that is not."""
    testbed = read_testbed(TESTBED)
    tasks = ("double-digits", "reverse-letters", "sort-capitals", "mirror-letters")
    return tuple(testbed.lines_of(task, "dev")[3].prompt for task in tasks)


@cache
def factors(name: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """`A [R, D]` and `c B [O, R]` by layer, in float64, straight from PEFT's files. Ranks and alphas differ, and one
    adapter has rsLoRA's scaling."""
    folder = TESTBED / "adapters" / name
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    found = {}
    for key, a_RD in tensors.items():
        if ".lora_A." in key:
            path = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            b_OR = tensors[key.replace(".lora_A.", ".lora_B.")]
            alpha = config["alpha_pattern"].get(path.rpartition(".")[2], config["lora_alpha"])
            rank = len(a_RD)
            scaling = alpha / rank**0.5 if config["use_rslora"] else alpha / rank
            found[path] = (a_RD.double(), scaling * b_OR.double())
    return found


@cache
def delta(name: str, path: str) -> torch.Tensor:
    """The dense update of one layer, `[O, D]`."""
    a_RD, b_OR = factors(name)[path]
    return b_OR @ a_RD


def base_model() -> Any:
    """The testbed's base in float64."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(TESTBED / "base", dtype=torch.float64)
    return model.eval().requires_grad_(False)


class PlainModel:
    """The base with a hook on every layer that adapters touch."""

    def __init__(self) -> None:
        self._model = base_model()
        self._update: Update = lambda _path, _x: None
        for path in factors(NAMES[0]):
            self._model.get_submodule(path).register_forward_hook(self._hook(path))

    def logits(self, prompt: Sequence[int], completion: Sequence[int], update: Update) -> torch.Tensor:
        """Logits of the positions that the completion was sampled from."""
        self._update = update
        return full_forward_logits(self._model, list(prompt), list(completion))

    def _hook(self, path: str) -> Any:
        def add(_module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            added_TO = self._update(path, inputs[0][0])
            return output if added_TO is None else output + added_TO[None]

        return add


class _TestbedComponents:
    def __init__(self) -> None:
        self._names = {adapter_id_of(name, "testbed"): name for name in NAMES}

    @cache  # noqa: B019  (one object for all tests)
    def fetch(self, adapter_id: str, basis: RocBasis) -> DecomposedAdapter:
        if adapter_id not in self._names:
            raise UnknownAdapter(f"No adapter {adapter_id}.")
        return decompose(read_adapter_folder(TESTBED / "adapters" / self._names[adapter_id]), basis=basis)


class StrategyBed:
    """The product's side; `stop` ends its engine."""

    def __init__(self) -> None:
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(TESTBED / "base")
        self.tokenizer = tokenizer
        self.profiles = [
            AdapterProfile(
                adapter_id=adapter_id_of(name, "testbed"),
                adapter_name=name,
                lora_rank=max(len(a_RD) for a_RD, _ in factors(name).values()),
                samples_ME=samples()[name],
            )
            for name in NAMES
        ]
        self.router = SequenceRouter(self.profiles, catalog_generation=1)
        self.gates = InMemoryGateSource()
        loaded = LoadedModel(
            name="testbed",
            model=base_model(),
            tokenizer=tokenizer,
            eos_token_ids=frozenset({tokenizer.eos_token_id}),
        )
        self.merged = MergedComponents(_TestbedComponents(), capacity_bytes=64 << 20)
        # Small steps: prompts are read in several chunks.
        self.engine = make_engine(
            loaded,
            self.merged,
            gate_source=self.gates,
            max_num_batched_tokens=8,
            max_num_seqs=4,
            roc_pool_bytes=64 << 20,
        )
        self._recorder = LogitRecorder(self.engine)
        self._preparer = PlanPreparer(engine=self.engine, merger=self.merged)
        self._num_requests = 0
        self.engine.start()

    def stop(self) -> None:
        """End the engine."""
        self.engine.stop(drain_seconds=0)

    def add_gate(self, gate_id: str, gate: LearnedGate) -> None:
        """A learned gate that plans may name."""
        self.gates.gates[gate_id] = gate

    def decide(
        self, strategy: str, text: str, *, question: Mapping[str, Any] | None = None, **settings: Any
    ) -> RoutingDecision:
        """A strategy's decision."""
        chosen = strategy_named(strategy)
        asked = RoutingQuestion(z_E=embed(text), settings=replace(chosen.settings, **settings), **dict(question or {}))
        return chosen.decide(self.router, asked)

    def prompt_ids(self, text: str) -> list[int]:
        """The text's tokens."""
        return list(self.tokenizer(text)["input_ids"])

    def prepared(self, plan: RoutingPlan, text: str) -> RoutingPlan:
        """What a worker makes of a plan."""
        return asyncio.run(self._preparer.prepared(plan, self.prompt_ids(text)))

    def answer(self, plan: RoutingPlan, text: str) -> tuple[list[int], torch.Tensor]:
        """The engine's tokens under a plan and the logits they were sampled from."""
        self._num_requests += 1
        name = f"request-{self._num_requests}"
        recorder = submit(
            self.engine, name, self.prompt_ids(text), plan=self.prepared(plan, text), max_tokens=MAX_TOKENS
        )
        assert recorder.done.wait(timeout=patient(60))
        assert recorder.finished.num_completion_tokens == MAX_TOKENS
        return recorder.token_ids, self._recorder.of(name)

    def logits_of(self, request_id: str) -> torch.Tensor:
        """The logits that a request of the engine was sampled from."""
        return self._recorder.of(request_id)


def assert_same_logits(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal within the tolerance."""
    assert found.shape == expected.shape
    assert (found.double() - expected.double()).abs().max().item() <= TOLERANCE


def mixture(weights: Mapping[str, float]) -> Update:
    """`sum_i w_i delta_i x`."""
    return lambda path, x_TD: sum(weight * (x_TD @ delta(name, path).T) for name, weight in weights.items())


def names_of(plan: RoutingPlan) -> list[str]:
    """The plan's adapters."""
    return [budget.adapter_name for budget in plan.budgets]


def means() -> np.ndarray:
    """Unit mean of each adapter's samples, in the order of `NAMES`, float64."""
    rows = np.stack([samples()[name].astype(np.float64).mean(axis=0) for name in NAMES])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def softmax(scores: Sequence[float] | np.ndarray) -> np.ndarray:
    """Written out."""
    shifted = np.exp(np.asarray(scores, dtype=np.float64) - np.max(scores))
    return shifted / shifted.sum()
