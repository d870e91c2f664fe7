"""One of the processes of a sharded engine, to be started by torchrun, and the requests that it is tried with.

`torchrun --standalone --nproc-per-node 2 -m tests.builders.tensor_parallel FOLDER ...` loads each base in turn, runs
the same requests through it, and leaves what came out in `FOLDER/sharded.pt`.
"""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from hilora.adapter import RocBasis
from hilora.errors import InvalidInput
from hilora.routing_plan import GateParameters, GateRule, GateScope, RocScore, RoutingPlan
from hilora.target_layer import LayerKind, target_layers
from services.worker.engine.config import EngineConfig
from services.worker.engine.engine import Engine
from services.worker.engine.execution.parallel_runner import Follower
from services.worker.engine.output.events import Failed
from services.worker.models.loader import LoadedModel, load_model
from services.worker.models.tensor_parallel import ParallelGroup, join_parallel_group
from services.worker.settings import ProcessPlace
from tests.builders.components import InMemoryComponentSource
from tests.builders.engine import Recorder, make_plan, run_until_done, submit
from tests.builders.gates import InMemoryGateSource, make_adaptive_plan, make_gate
from tests.builders.logits import LogitRecorder, random_prompt
from tests.builders.models import EXPERT_ARCHITECTURES, make_adapter, make_model, save_byte_tokenizer

NUM_ADAPTERS = 6
RANK = 4
_VOCAB_SIZE = 260
_DTYPES = dict.fromkeys(EXPERT_ARCHITECTURES, "float32")
"""transformers multiplies sharded experts in single precision only."""
PLANS: dict[str, RoutingPlan] = {
    "full": make_plan(("a0", RANK, RANK, 1.0)),
    "two": make_plan(("a1", RANK, 2, 0.5), ("a2", RANK, 1, 0.5)),
    "global": make_plan(
        ("a3", RANK, 2, 0.7), ("a1", RANK, 2, 0.3), scope=GateScope.GLOBAL, score=RocScore.CONTRIBUTION
    ),
    "arrow": replace(
        make_plan(("a4", RANK, RANK, 1.0), ("a5", RANK, RANK, 1.0)),
        gate=GateParameters(rule=GateRule.ARROW, basis=RocBasis.SVD),
    ),
    **{
        rule.value: make_adaptive_plan(rule, [("a0", RANK, 0.6), ("a3", RANK, 0.9)], top_k=RANK)
        for rule in GateRule
        if rule.is_learned
    },
}
MISFIT = make_adaptive_plan(GateRule.SMORA, [("a0", RANK, 1.0)], gate_id="misfit@1")
"""A plan whose gate has fewer rows than its adapter has components: known only when both are there."""

Outcome = dict[str, tuple[list[int], torch.Tensor]]
"""Token ids and logits by request."""


def save_shardable(folder: Path, architecture: str) -> None:
    """A base whose vocabulary two processes can share evenly."""
    assert save_byte_tokenizer(folder) <= _VOCAB_SIZE
    make_model(architecture, vocab_size=_VOCAB_SIZE).save_pretrained(folder)


def dtype_of(folder: Path) -> str:
    """What a base is tried in; its folder carries the architecture's name."""
    return _DTYPES.get(folder.name, "float64")


@cache
def _shapes(architecture: str) -> dict[str, tuple[int, int]]:
    """All linear layers but experts, which a sharded model keeps to itself."""
    return {
        path: (num_in, num_out)
        for layer in target_layers(make_model(architecture, vocab_size=_VOCAB_SIZE))
        if layer.kind is LayerKind.LINEAR
        for path, (num_out, num_in) in layer.features.items()
    }


def adapters_for(architecture: str) -> InMemoryComponentSource:
    """Adapters on everything that can be targeted."""
    shapes = _shapes(architecture)
    return InMemoryComponentSource(
        {f"a{idx}": make_adapter(shapes, rank=RANK, seed=idx) for idx in range(NUM_ADAPTERS)}
    )


@cache
def gates_for(architecture: str) -> InMemoryGateSource:
    """The learned gates of `PLANS`, and one that does not fit."""
    shapes = _shapes(architecture)
    ranks = {adapter_id: dict.fromkeys(shapes, RANK) for adapter_id in ("a0", "a3")}
    gates = {
        plan.gate.gate_id: make_gate(plan.gate.rule, ranks=ranks, shapes=shapes, seed=idx)
        for idx, plan in enumerate(PLANS.values())
        if plan.gate.gate_id is not None
    }
    narrow = {"a0": dict.fromkeys(shapes, RANK - 1)}
    misfit = make_gate(GateRule.SMORA, ranks=narrow, shapes=shapes)
    return InMemoryGateSource({**gates, MISFIT.gate.gate_id or "": misfit})


def config(**changes: object) -> EngineConfig:
    """The limits of the engines that are compared."""
    settings = {"max_num_seqs": 6, "max_model_len": 96, "max_num_batched_tokens": 32, "roc_pool_bytes": 4 << 20}
    return EngineConfig(**{**settings, **changes})  # pyright: ignore[reportArgumentType]


def mixed_batch(loaded: LoadedModel, architecture: str) -> Outcome:
    """Requests with different plans and none, side by side."""
    engine = Engine(
        loaded=loaded, source=adapters_for(architecture), config=config(), gate_source=gates_for(architecture)
    )
    recorder = LogitRecorder(engine)
    done = {
        name: submit(engine, name, random_prompt(8 + 9 * idx, idx), plan=PLANS.get(name), max_tokens=6)
        for idx, name in enumerate(["base", *PLANS])
    }
    if loaded.group is not None:
        _check_that_nothing_is_explained(engine)
    misfit = submit(engine, "misfit", random_prompt(9, 99), plan=MISFIT, max_tokens=6)
    run_until_done(engine, *done.values(), misfit)
    assert isinstance(misfit.events[-1], Failed), "a gate that does not fit was used"
    assert misfit.events[-1].error.code == "gate_shape_mismatch"
    engine.check_integrity()
    engine.stop(drain_seconds=0)
    return {name: (one.token_ids, recorder.of(name)) for name, one in done.items()}


def _check_that_nothing_is_explained(engine: Engine) -> None:
    """One process that read again by itself would wait for the others for ever."""
    try:
        submit(engine, "explained", random_prompt(8), plan=next(iter(PLANS.values())), explains_gating=True)
    except InvalidInput as error:
        assert error.code == "explanation_unsupported", error.code  # noqa: PT017  (the processes run without pytest)
    else:
        raise AssertionError("an explanation was begun")


def walk_config(architecture: str) -> EngineConfig:
    """Room for three adapters of six, prefixes that are kept, two requests at a time."""
    num_features = sum(num_in + num_out + 1 for num_in, num_out in _shapes(architecture).values())
    pool_bytes = 3 * RANK * num_features * (4 if architecture in EXPERT_ARCHITECTURES else 8)
    return config(max_num_seqs=2, max_num_batched_tokens=16, roc_pool_bytes=pool_bytes, enable_prefix_cache=True)


def walk_requests() -> dict[str, tuple[list[int], RoutingPlan | None]]:
    """What the walk may ask."""
    rng = random.Random(3)
    asked: dict[str, tuple[list[int], RoutingPlan | None]] = {}
    for idx in range(40):
        members = rng.sample(range(NUM_ADAPTERS), rng.randint(0, 2))
        plan = make_plan(*((f"a{member}", RANK, rng.randint(1, RANK), 0.6) for member in members)) if members else None
        # Two beginnings, so that some prefixes are met again.
        asked[f"w{idx}"] = (random_prompt(20, rng.randint(0, 1)) + random_prompt(rng.randint(1, 9), idx), plan)
    return asked


def random_walk(loaded: LoadedModel, architecture: str) -> Outcome:
    """Requests that come, are cut off, and make adapters come and go; the answers that were finished."""
    engine = Engine(loaded=loaded, source=adapters_for(architecture), config=walk_config(architecture))
    rng = random.Random(5)
    recorders: dict[str, Recorder] = {}
    for name, (prompt, plan) in walk_requests().items():
        recorders[name] = submit(engine, name, prompt, plan=plan, max_tokens=4, priority=rng.choice([0, 0, -1]))
        if rng.random() < 0.2:
            engine.abort(rng.choice(list(recorders)))
        if rng.random() < 0.1:
            engine.retire(f"a{rng.randrange(NUM_ADAPTERS)}")
        for _ in range(rng.randint(0, 3)):
            engine.run_step()
            engine.check_integrity()
    run_until_done(engine, *recorders.values(), max_steps=5000)
    engine.check_integrity()
    assert engine.stats().counters.num_cached_tokens > 0, "the walk never met a prefix again"
    assert engine.stats().roc_pool.num_evictions > 0, "the walk never ran out of room"
    engine.stop(drain_seconds=0)
    finished = {name: one.token_ids for name, one in recorders.items() if one.finished.finish_reason == "length"}
    return {name: (token_ids, torch.empty(0)) for name, token_ids in finished.items()}


def main(folders: list[Path]) -> None:
    """Run as one process of several."""
    torch.set_num_threads(1)
    place = ProcessPlace()
    group = join_parallel_group(
        rank=place.rank, size=place.world_size, local_rank=place.local_rank, device="cpu", step_timeout_seconds=60
    )
    for folder in folders:
        _lead(folder, group) if group.is_leader else _follow(folder, group)
    group.leave()


def _loaded(folder: Path, group: ParallelGroup) -> LoadedModel:
    return load_model(str(folder), device="cpu", dtype=dtype_of(folder), group=group)


def _lead(folder: Path, group: ParallelGroup) -> None:
    outcomes = {}
    for run in (mixed_batch, random_walk):
        outcomes[run.__name__] = run(_loaded(folder, group), folder.name)
        group.release()
    torch.save(outcomes, folder / "sharded.pt")


def _follow(folder: Path, group: ParallelGroup) -> None:
    for limits in (config(), walk_config(folder.name)):
        Follower(_loaded(folder, group), limits).run()


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
