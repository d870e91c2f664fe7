"""Tables are kept between steps; rows change owners between steps. What is kept must never outlive where it points."""

from __future__ import annotations

import random

import pytest
import torch

from hilora.adapter import DecomposedAdapter, RocBasis
from hilora.routing_plan import GateScope, RocScore, RoutingPlan
from services.worker.lora.gating.batch_plan import RocForm, StepRocs, StepRocsBuilder
from services.worker.lora.pool.roc_arena import ArenaStrategy, ModuleShape
from services.worker.lora.pool.roc_pool import RocKey, RocPool
from tests.builders.engine import make_plan
from tests.builders.models import make_adapter

_CPU = torch.device("cpu")
_SHAPES = {"q": (24, 16), "k": (24, 16), "down": (40, 24)}
_RANKS = [4, 2, 7, 3, 5, 1, 6, 4]


class Walk:
    """A pool with room for half of the adapters, and whoever asks for them next throwing others out."""

    def __init__(self, growth: ArenaStrategy, form: RocForm) -> None:
        modules = [ModuleShape(module_path=path, in_features=d, out_features=o) for path, (d, o) in _SHAPES.items()]
        self.pool = RocPool(modules=modules, capacity_bytes=9_000, dtype=torch.float32, device=_CPU, strategy=growth)
        self.form: RocForm = form
        self.builder = StepRocsBuilder(self.pool, dtype=torch.float32, device=_CPU, form=form)
        self.adapters = [make_adapter(_SHAPES, rank=rank, seed=idx) for idx, rank in enumerate(_RANKS)]

    def hold(self, members: list[int]) -> list[RocKey] | None:
        keys = [RocKey(f"a{idx}", RocBasis.TRAINED) for idx in members]
        adapters: dict[RocKey, DecomposedAdapter] = {key: self.adapters[int(key.adapter_id[1:])] for key in keys}
        sizes = {key: self.pool.sizes_of(adapter, adapter_id=key.adapter_id) for key, adapter in adapters.items()}
        if not self.pool.try_acquire(keys, sizes):
            return None
        for key in keys:
            if not self.pool.is_committed([key]):
                self.pool.write(key, adapters[key])
                self.pool.commit(key)
        return keys

    def plan(self, members: list[int]) -> RoutingPlan:
        budgets = [(f"a{idx}", _RANKS[idx], max(1, _RANKS[idx] // 2), 1.0 / (1 + idx)) for idx in members]
        return make_plan(*budgets, scope=GateScope.PER_ADAPTER, score=RocScore.CONTRIBUTION)

    def outputs(self, step: StepRocs | None) -> list[torch.Tensor]:
        assert step is not None
        outputs = []
        for module_idx, (num_in, num_out) in enumerate(_SHAPES.values()):
            y = torch.zeros(9, num_out)
            generator = torch.Generator().manual_seed(module_idx)
            step.add(module_idx, torch.randn(9, num_in, generator=generator), y)
            outputs.append(y)
        return outputs


@pytest.mark.parametrize("growth", list(ArenaStrategy))
@pytest.mark.parametrize("form", ["native", "torch"])
@pytest.mark.parametrize("seed", [0, 1])
def test_kept_tables_answer_as_new_ones_do(growth, form, seed) -> None:
    walk, rng = Walk(growth, form), random.Random(seed)
    # Few different plans, so that each comes again after its adapters have been elsewhere.
    choices = [rng.sample(range(len(_RANKS)), k=rng.choice([1, 1, 2])) for _ in range(6)]
    num_steps = 0
    for _ in range(250):
        chosen = [rng.choice(choices) for _ in range(rng.choice([1, 2]))]
        held = [keys for members in chosen if (keys := walk.hold(members)) is not None]
        if len(held) == len(chosen):
            plans = [walk.plan(members) for members in chosen]
            chunks = [(slice(len(plans), 8), None, plans[0])]
            fresh = StepRocsBuilder(walk.pool, dtype=torch.float32, device=_CPU, form=walk.form)
            kept = walk.outputs(walk.builder.build(decode_plans=plans, chunk_plans=chunks))
            new = walk.outputs(fresh.build(decode_plans=plans, chunk_plans=chunks))
            for one, other in zip(kept, new, strict=True):
                assert torch.equal(one, other)
                assert one.any()
            num_steps += 1
        for keys in held:
            walk.pool.release(keys)
        if rng.random() < 0.1:
            walk.pool.retire(f"a{rng.randrange(len(_RANKS))}")
            walk.pool.trim()
        for idx in range(len(_RANKS)):
            walk.pool.readmit(f"a{idx}")
        walk.pool.check_integrity()
    assert num_steps > 100
