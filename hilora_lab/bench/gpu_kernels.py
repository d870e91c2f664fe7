"""Bandwidth of the two GPU kernels as a share of what copying reaches.

Decode rows, one plan each, over a pool of rows that all of them share; captured in a graph, so that launching does not
count. Bytes are those of the different rows read: a share above 1 would mean that rows come from the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch

from hilora_lab.bench.workload import Features
from services.worker.models.loader import LoadedModel

_COPY_BYTES = 1 << 30
_BATCH = 32
_NUM_ACTIVE = 16
_NUM_REPEATS = 20


def kernel_shares(
    loaded: LoadedModel, features: Features, *, num_rows: int, num_slots: int
) -> dict[str, float | int] | None:
    """The widest layer's kernels: bytes per second each, and their shares of a copy's; None without Triton.

    Args:
        loaded: on a CUDA device.
        features: the layers that adapters target.
        num_rows: of the pool.
        num_slots: candidates of a request, all in one group.
    """
    if find_spec("triton") is None:
        return None
    from services.worker.kernels.triton_ops import ItemBuffers, LayerBuffers, roc_expand, roc_shrink_gate

    height, width = max(features.values())
    device, dtype = loaded.device, loaded.dtype
    generator = torch.Generator(device).manual_seed(0)

    def random(*sizes: int) -> torch.Tensor:
        return torch.randn(sizes, device=device, generator=generator).to(dtype)

    def int32(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    a_ND, b_NO, x_TD = random(num_rows + 1, width), random(num_rows + 1, height), random(_BATCH, width)
    y_TO = random(_BATCH, height)
    rows_LS = torch.stack(
        [1 + torch.randperm(num_rows, device=device, generator=generator)[:num_slots] for _ in range(_BATCH)]
    )
    items = ItemBuffers(
        first_rows_I=int32(list(range(_BATCH))),
        num_rows_I=int32([1] * _BATCH),
        plans_I=int32(list(range(_BATCH))),
        factors_LGS=torch.ones(_BATCH, 1, num_slots, device=device),
        is_by_norm_L=int32([0] * _BATCH),
    )
    layer = LayerBuffers(rows_LGS=rows_LS[:, None].int(), budgets_LG=int32([_NUM_ACTIVE] * _BATCH)[:, None])
    gains_TGS = torch.zeros(_BATCH, 1, num_slots, device=device)
    norms_N = b_NO.float().norm(dim=1).to(dtype)

    def shrink_gate() -> None:
        roc_shrink_gate(x_TD, a_ND, norms_N, items, layer, gains_TGS, block_tokens=1)

    def expand() -> None:
        roc_expand(gains_TGS, b_NO, items, layer, y_TO, block_tokens=1)

    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = 2 * _COPY_BYTES / _graph_seconds(lambda: target.copy_(source))
    shrink_seconds = _graph_seconds(shrink_gate)
    is_kept_LS = gains_TGS[:, 0] != 0
    num_kept = int(rows_LS[is_kept_LS].unique().numel())
    shrunk = int(rows_LS.unique().numel()) * width * dtype.itemsize / shrink_seconds
    expanded = num_kept * height * dtype.itemsize / _graph_seconds(expand)
    return {
        "batch_size": _BATCH,
        "copy_gb_per_second": round(copied / 1e9, 1),
        "shrink_gate_share": round(shrunk / copied, 4),
        "expand_share": round(expanded / copied, 4),
    }


def _graph_seconds(work: Callable[[], object]) -> float:
    """Seconds of one call, from a graph of several."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_NUM_REPEATS):
            work()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    graph.replay()
    begin.record()
    graph.replay()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / _NUM_REPEATS
