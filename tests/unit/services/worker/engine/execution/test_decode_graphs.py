"""Captured decode steps, with a recorder that repeats the forward pass instead of a GPU: buffers, padding, keys."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hilora.routing_plan import GateScope, RocScore, RoutingPlan
from services.worker.engine.config import EngineConfig
from services.worker.engine.engine import Engine
from services.worker.engine.execution.decode_graphs import DecodeGraphs, graph_sizes
from services.worker.engine.kv.paged_kv_cache import PagedKvCache
from services.worker.lora.gating import batch_plan
from services.worker.lora.layers.wrapping import capturable_modules
from services.worker.lora.pool.roc_arena import ArenaStrategy, RocArena
from services.worker.lora.pool.roc_pool import RocPool
from services.worker.models.varlen_attention import adapt_varlen_attention
from tests.builders.engine import InMemoryComponentSource, make_plan, run_until_done, submit
from tests.builders.kv import varlen_reference
from tests.builders.models import linear_shapes, load_tiny, make_adapter

_CPU = torch.device("cpu")


class RepeatingRecorder:
    """A graph that is the forward pass itself, into the buffer of the first one."""

    def __init__(self) -> None:
        self.num_replays = 0

    def __call__(self, work: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        output = work()
        contexts: list[tuple[Any, Any]] = [(context, context.step) for context in self.contexts]
        captured = self._arenas(contexts[0][1])

        def replay() -> None:
            self.num_replays += 1
            # A real graph holds addresses: it would read these arenas even if the pool had replaced them.
            assert all(one is other for one, other in zip(captured, self._arenas(contexts[0][1]), strict=True))
            for context, step in contexts:
                context.step = step
            output.copy_(work())
            for context, _ in contexts:
                context.step = None

        return output, replay

    contexts: tuple[Any, ...] = ()

    @staticmethod
    def _arenas(rocs: Any) -> list[RocArena]:
        return [] if rocs is None else [rocs._pool.arena(module_idx) for module_idx in rocs._place_of]


def _kernel(query: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
    """Graphs say the largest length there can be, where the reference wants that of the step."""
    key, value, cu_seq_q, _, _, _ = rest
    lengths = options["seqused_k"]
    cu_seq_k = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    return varlen_reference(query, key, value, cu_seq_q, cu_seq_k, 1, int(lengths.max()), **options)


def _kernel_of_any_step(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa, seqused_k, block_table
):
    options = {
        "scale": scale,
        "window_size": window_size,
        "enable_gqa": enable_gqa,
        "seqused_k": seqused_k,
        "block_table": block_table,
    }
    if max_q == 1:
        return _kernel(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **options)
    return varlen_reference(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **options)


class Setup:
    """An engine with pages and the kernel, its requests, and graphs if asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, has_graphs: bool) -> None:
        monkeypatch.setattr(batch_plan, "_chosen_form", lambda *_: "triton")
        # As on a GPU: arenas are replaced by larger ones as adapters arrive.
        growing = functools.partial(RocPool, strategy=ArenaStrategy.GROWING)
        monkeypatch.setattr("services.worker.engine.execution.model_runner.RocPool", growing)
        loaded = load_tiny("llama")
        shapes = linear_shapes(loaded.model)
        head_shapes = {"lm_head": (32, 96)}
        self.source = InMemoryComponentSource(
            {
                "a": make_adapter(shapes, rank=4, seed=1),
                "b": make_adapter(shapes, rank=3, seed=2),
                "c": make_adapter({k: v for k, v in shapes.items() if "q_proj" in k}, rank=6, seed=3),
                "head": make_adapter({**shapes, **head_shapes}, rank=2, seed=4),
            }
        )
        monkeypatch.setattr(
            "services.worker.engine.kv.kv_cache.find_varlen_attention",
            lambda **_: adapt_varlen_attention(_kernel_of_any_step),
        )
        monkeypatch.setattr("services.worker.engine.kv.kv_cache.VARLEN_PAGE_SIZE", 8)
        config = EngineConfig(max_num_seqs=6, max_model_len=64, max_num_batched_tokens=64, roc_pool_bytes=4 << 20)
        self.engine = Engine(loaded=loaded, source=self.source, config=config)
        runner = self.engine._runner
        assert isinstance(runner.kv_cache, PagedKvCache)
        self.recorder = RepeatingRecorder()
        self.recorder.contexts = (runner._rocs, runner._attention)
        capturable = capturable_modules(loaded.model)
        assert capturable is not None
        if has_graphs:
            runner._graphs = DecodeGraphs(
                model=loaded.model,
                kv_cache=runner.kv_cache,
                capturable=capturable,
                roc_context=runner._rocs,
                attention_context=runner._attention,
                max_num_seqs=6,
                recorder=self.recorder,
                device=_CPU,
            )
        self.graphs = runner._graphs

    def answers(self, plans: list[RoutingPlan]) -> list[list[int]]:
        recorders = [
            submit(self.engine, f"r{idx}", list(range(3, 5 + idx)), plan=plan, max_tokens=3 + idx % 2)
            for idx, plan in enumerate(plans)
        ]
        run_until_done(self.engine, *recorders)
        self.engine.check_integrity()
        return [recorder.token_ids for recorder in recorders]


_PLANS = [
    make_plan(("a", 4, 2, 1.0)),
    make_plan(("a", 4, 1, 0.5), ("b", 3, 2, 0.5)),
    RoutingPlan(),
    make_plan(("b", 3, 1, 0.7), ("c", 6, 2, 0.3), scope=GateScope.GLOBAL, score=RocScore.CONTRIBUTION),
    make_plan(("c", 6, 3, 1.0)),
]


@functools.cache
def plain_answers() -> list[list[int]]:
    """Those of an engine without graphs to all plans."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        return Setup(monkeypatch, has_graphs=False).answers(_PLANS)


def test_replayed_steps_answer_as_plain_ones_do(monkeypatch) -> None:
    captured = Setup(monkeypatch, has_graphs=True)
    assert captured.answers(_PLANS) == plain_answers()
    assert captured.recorder.num_replays > 2


def test_a_batch_without_rocs_has_graphs_of_its_own(monkeypatch) -> None:
    captured = Setup(monkeypatch, has_graphs=True)
    assert captured.graphs is not None
    base = captured.answers([RoutingPlan()] * 2)
    assert base == Setup(monkeypatch, has_graphs=False).answers([RoutingPlan()] * 2)
    without = captured.graphs.num_graphs
    captured.answers([_PLANS[0]])
    assert captured.graphs.num_graphs > without


def test_graphs_are_captured_once(monkeypatch) -> None:
    captured = Setup(monkeypatch, has_graphs=True)
    assert captured.graphs is not None
    # Once to make the adapters resident: until then, who runs together depends on how fast they load.
    captured.answers(_PLANS[:2])
    captured.answers(_PLANS[:2])
    first = captured.graphs.num_graphs
    captured.answers(_PLANS[:2])
    assert captured.graphs.num_graphs == first


def test_an_adapter_of_the_output_embedding_runs_without_a_graph(monkeypatch) -> None:
    plans = [make_plan(("head", 2, 1, 1.0))]
    captured = Setup(monkeypatch, has_graphs=True)
    assert captured.answers(plans) == Setup(monkeypatch, has_graphs=False).answers(plans)
    assert captured.recorder.num_replays == 0


@pytest.mark.parametrize(
    ("max_num_seqs", "sizes"), [(1, (1,)), (3, (1, 2, 3)), (6, (1, 2, 4, 6)), (32, (1, 2, 4, 8, 16, 24, 32))]
)
def test_sizes(max_num_seqs, sizes) -> None:
    assert graph_sizes(max_num_seqs) == sizes


def test_graphs_of_replaced_arenas_are_not_replayed(monkeypatch) -> None:
    captured = Setup(monkeypatch, has_graphs=True)
    assert captured.graphs is not None
    before = captured.answers([_PLANS[4]])
    first = captured.graphs.num_graphs
    # Two more adapters: the arenas grow.
    captured.answers([_PLANS[1]])
    again = captured.answers([_PLANS[4]])
    assert again == before
    assert captured.graphs.num_graphs > first + 1


def test_a_model_that_cannot_be_captured_runs_without_graphs(monkeypatch) -> None:
    captured = Setup(monkeypatch, has_graphs=True)
    assert captured.graphs is not None
    attempts: list[object] = []

    def refusing(work):
        attempts.append(work)
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    captured.graphs._recorder = refusing
    assert captured.answers(_PLANS) == plain_answers()
    assert captured.graphs.num_graphs == 0
    # What could not be captured once is not tried again in every step.
    again = len(attempts)
    captured.answers([RoutingPlan()])
    captured.answers([RoutingPlan()])
    assert len(attempts) <= again + 1
