"""What the engine needs of whatever computes its steps, and which of them a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from hilora.routing_plan import RoutingPlan
from services.worker.engine.config import EngineConfig
from services.worker.engine.execution.batch import PromptLogits
from services.worker.engine.execution.gating_pass import GatingPass
from services.worker.engine.execution.model_runner import ModelRunner
from services.worker.engine.execution.parallel_runner import LeaderRunner
from services.worker.engine.execution.seq2seq_runner import Seq2SeqRunner
from services.worker.engine.kv.kv_cache import SequenceMemory
from services.worker.engine.scheduling.request import ActiveRequest
from services.worker.engine.scheduling.scheduler import ScheduledWork
from services.worker.lora.gating.learned_gates import LearnedGates
from services.worker.lora.pool.roc_pool import RocPool
from services.worker.models.loader import LoadedModel
from services.worker.ports import GateSource


class RunnerBatch(Protocol):
    """One step, ready to be computed."""

    @property
    def sampling(self) -> tuple[ActiveRequest, ...]:
        """The requests whose next token is to be chosen."""
        ...

    @property
    def prompt_logits(self) -> tuple[PromptLogits, ...]:
        """Which rows of the step's logits tell of a prompt."""
        ...

    def sampled_logits(self, logits_SV: torch.Tensor) -> torch.Tensor:
        """The rows to sample from, one for each request of `sampling`."""
        ...


class Runner(Protocol):
    """A model with its KV cache and its ROC pool."""

    @property
    def pool(self) -> RocPool:
        """The device tier of components."""
        ...

    @property
    def gates(self) -> LearnedGates:
        """The learned gates of plans."""
        ...

    @property
    def kv_cache(self) -> SequenceMemory:
        """The memory of keys and values."""
        ...

    def build_batch(self, works: Sequence[ScheduledWork]) -> Any:
        """The tensors for a step's work; each request has its place in the KV cache, and its ROCs are resident. Returns
        a `RunnerBatch` of the runner's own kind."""
        ...

    def execute(self, batch: Any) -> torch.Tensor:
        """One step: writes its keys and values, returns its logits `[S, V]`. Running the same batch again is harmless:
        every value goes to the same place."""
        ...


class GatingPassMaker(Protocol):
    """Starts to read a finished request again."""

    def __call__(
        self, token_ids: Sequence[int], *, num_prompt_tokens: int, num_read_tokens: int, plan: RoutingPlan
    ) -> GatingPass:
        """See `GatingPass`."""
        ...


def listening_runner(runner: Runner) -> ModelRunner | None:
    """The runner, if it can read a prompt to hear what a layer is given; for the reasons of `gating_pass_maker` not all
    can."""
    return runner if isinstance(runner, ModelRunner) and not isinstance(runner, LeaderRunner) else None


def gating_pass_maker(runner: Runner) -> GatingPassMaker | None:
    """What explains a runner's requests; None where nothing does: an encoder reads prompts by itself, and of several
    processes all would have to read again."""
    if isinstance(runner, ModelRunner) and not isinstance(runner, LeaderRunner):
        return runner.gating_pass
    return None


def build_runner(loaded: LoadedModel, config: EngineConfig, *, gate_source: GateSource | None = None) -> Runner:
    """The runner for a model, which it takes over.

    Raises:
        InvalidInput: the architecture is not supported, or memory is too small for one request.
        ValueError: `max_model_len` exceeds the positions that the model has embeddings for.
    """
    if loaded.group is not None:
        return LeaderRunner(loaded, config, gate_source=gate_source)
    runner = Seq2SeqRunner if loaded.is_encoder_decoder else ModelRunner
    return runner(loaded, config, gate_source=gate_source)
