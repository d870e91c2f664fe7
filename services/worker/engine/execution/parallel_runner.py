"""One model, several processes, the same steps: the leader's runner and the followers' loop.

The leader is a runner like any other, and the engine knows nothing of its followers. Building a batch is the leader's
own affair and may fail for one request. From the moment on that the followers know of a step, all processes are inside
of it together, and a failure is the whole group's (`tensor_parallel`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from services.worker.engine.config import EngineConfig
from services.worker.engine.execution.batch import StepBatch
from services.worker.engine.execution.lockstep import (
    JournaledKvCache,
    JournaledRocsBuilder,
    KvReplay,
    LockstepMessage,
    StepLayout,
    follower_batch,
)
from services.worker.engine.execution.model_runner import ModelRunner
from services.worker.engine.scheduling.scheduler import ScheduledWork
from services.worker.lora.gating.batch_plan import StepRocsBuilder
from services.worker.lora.gating.gate_mirror import GateFollower, GateLeader
from services.worker.lora.gating.learned_gates import gate_id_of
from services.worker.lora.pool.pool_mirror import PoolFollower, PoolLeader
from services.worker.lora.pool.residency import keys_of
from services.worker.models.loader import LoadedModel
from services.worker.models.tensor_parallel import ParallelGroup
from services.worker.ports import GateSource


class LeaderRunner(ModelRunner):
    """The runner of the process that decides.

    Args:
        loaded: this process's shard.
        config: sizes of cache and pool, the same in all processes.
        gate_source: where learned gates come from; None: there are none. Followers get them from here.
    """

    def __init__(self, loaded: LoadedModel, config: EngineConfig, *, gate_source: GateSource | None = None) -> None:
        super().__init__(loaded, _lockstep_config(config), gate_source=gate_source)
        self._group = _group_of(loaded)
        self._journal = JournaledKvCache(self.kv_cache)
        self.kv_cache = self._journal
        self._journaled_builder = JournaledRocsBuilder(
            self.pool, dtype=loaded.dtype, device=loaded.device, gates=self.gates
        )
        self._builder = self._journaled_builder
        self._mirror = PoolLeader(self.pool, self.modules, dtype=loaded.dtype, device=loaded.device)
        self._gate_mirror = GateLeader(self.gates)
        self._last: tuple[StepBatch, StepLayout] | None = None

    def build_batch(self, works: Sequence[ScheduledWork]) -> StepBatch:
        """See `ModelRunner`."""
        batch = super().build_batch(works)
        decodes, chunks = self._journal.last_step
        layout = StepLayout(
            decodes=decodes,
            chunks=chunks,
            decode_plans=self._journaled_builder.last_decode_plans,
            chunk_plans=self._journaled_builder.last_chunk_plans,
        )
        self._last = (batch, layout)
        return batch

    def execute(self, batch: StepBatch) -> torch.Tensor:
        """See `ModelRunner`; only the batch that was built last."""
        last, layout = self._last or (None, None)
        assert layout is not None, "nothing was built"
        assert last is batch, "only the batch that was built last can be told"
        plans = (*layout.decode_plans, *(plan for _, _, plan in layout.chunk_plans))
        gate_ids = dict.fromkeys(gate_id for plan in plans if (gate_id := gate_id_of(plan)) is not None)
        message = LockstepMessage(
            mirror=self._mirror.change_for(dict.fromkeys(key for plan in plans for key in keys_of(plan))),
            gates=self._gate_mirror.change_for(gate_ids),
            # Last: what is taken here must be told.
            kv_calls=self._journal.take_calls(),
            layout=layout,
            token_ids=tuple(batch.token_ids_T.tolist()),
            positions=tuple(batch.positions_T.tolist()),
            logit_rows=tuple(batch.logit_rows_S.tolist()),
        )
        try:
            self._group.tell(message)
            self._mirror.enact(message.mirror, self._group.share)
            self._gate_mirror.enact(message.gates, self._group.share)
            return super().execute(batch)
        except BaseException as error:
            self._group.fail(error)


class Follower:
    """A process that computes what the leader says.

    Args:
        loaded: this process's shard.
        config: the leader's.
    """

    def __init__(self, loaded: LoadedModel, config: EngineConfig) -> None:
        self._group = _group_of(loaded)
        self._device = loaded.device
        self._runner = ModelRunner(loaded, _lockstep_config(config))
        self._builder = StepRocsBuilder(
            self._runner.pool, dtype=loaded.dtype, device=loaded.device, gates=self._runner.gates
        )
        self._replay = KvReplay(self._runner.kv_cache)
        self._mirror = PoolFollower(self._runner.pool, self._runner.modules, dtype=loaded.dtype, device=loaded.device)
        self._gate_mirror = GateFollower(self._runner.gates, device=loaded.device)

    def run(self) -> None:
        """Obey until the leader lets go. A failure of the group, the leader's end among them, ends the process."""
        try:
            while (message := self._group.hear()) is not None:
                self._obey(message)
        except BaseException as error:
            self._group.fail(error)

    def _obey(self, message: LockstepMessage) -> None:
        self._replay.repeat(message.kv_calls)
        self._mirror.enact(message.mirror, self._group.share)
        self._gate_mirror.enact(message.gates, self._group.share)
        self._runner.execute(follower_batch(message, self._replay, self._builder, device=self._device))


def _group_of(loaded: LoadedModel) -> ParallelGroup:
    assert loaded.group is not None, f"{loaded.name} is not sharded"
    return loaded.group


def _lockstep_config(config: EngineConfig) -> EngineConfig:
    """Collectives are not captured."""
    return replace(config, enable_cuda_graphs=False)
