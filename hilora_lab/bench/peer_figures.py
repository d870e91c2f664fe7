"""HiLoRA's engine against what others do, prompts included: output tokens per second over the same prompts.

Ours runs the plans, three adapters a request; `generate` and continuous batching run the base alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection
from contextlib import closing
from pathlib import Path

from hilora_lab.bench.figure import Measured
from hilora_lab.bench.pairing import ratios, summarise
from hilora_lab.bench.peers import (
    Peer,
    continuous_batching_peer,
    generate_peer,
    peft_arrow_peer,
    peft_mixed_peer,
)
from hilora_lab.bench.peft_folders import write_peft_folders
from hilora_lab.bench.session import BenchSession

_LONG_BATCH = 8
_PEER_KEYS = {"vs_generate_b8": 8, "vs_generate_b32": 32, "vs_peft_mixed_batch": 8, "vs_peft_arrow": 8}
"""Batch size by key."""


def measure_peers(session: BenchSession, wanted: Collection[str]) -> Measured:
    """`vs_generate_*`, `vs_peft_mixed_batch` and `vs_peft_arrow`; figures of one batch size share their turns."""
    found = Measured()
    makers: dict[str, Callable[[], Peer]] = {}
    with tempfile.TemporaryDirectory(prefix="hilora-bench-") as name:
        if {"vs_peft_mixed_batch", "vs_peft_arrow"} & set(wanted):
            folders = write_peft_folders(session.workload.adapters, Path(name))
            makers["vs_peft_mixed_batch"] = lambda: peft_mixed_peer(session.base, folders)
            makers["vs_peft_arrow"] = lambda: peft_arrow_peer(session.base, folders)
        makers["vs_generate_b8"] = makers["vs_generate_b32"] = lambda: generate_peer(session.base)
        for size in (8, 32):
            keys = [key for key, of_key in _PEER_KEYS.items() if of_key == size and key in wanted]
            if keys:
                found.add(_against(session, size, {key: makers[key]() for key in keys}))
    return found


def measure_continuous_batching(session: BenchSession, wanted: Collection[str]) -> Measured:
    """`vs_transformers_cb_768`: long prompts, both with steps of the same number of tokens at most."""
    found = Measured()
    if "vs_transformers_cb_768" not in wanted:
        return found
    sizes = session.sizes
    max_len = sizes.long_prompt_len + sizes.long_new_tokens
    with (
        continuous_batching_peer(
            session.base, num_prompts=_LONG_BATCH, max_len=max_len, chunk_tokens=sizes.chunk_tokens
        ) as peer,
        closing(session.drive(max_num_seqs=_LONG_BATCH, max_model_len=max_len)) as drive,
    ):

        def ours(round_idx: int) -> float:
            prompts = session.prompts(_LONG_BATCH, length=sizes.long_prompt_len, round_idx=round_idx)
            requests = session.requests(prompts, has_plans=True)
            return drive.complete(requests, new_tokens=sizes.long_new_tokens).tokens_per_second

        def theirs(round_idx: int) -> float:
            prompts = session.prompts(_LONG_BATCH, length=sizes.long_prompt_len, round_idx=round_idx)
            return peer(prompts, sizes.long_new_tokens)

        title = f"continuous batching, {sizes.long_prompt_len} tokens"
        speeds = session.take_turns(title, {"hilora": ours, "transformers_cb": theirs})
    found.ratios["vs_transformers_cb_768"] = summarise(ratios(speeds["hilora"], speeds["transformers_cb"]))
    for name, values in speeds.items():
        found.extras[f"tokens_per_second_{name}_long_b{_LONG_BATCH}"] = summarise(values).as_json()
    return found


def _against(session: BenchSession, size: int, peers: dict[str, Peer]) -> Measured:
    found = Measured()
    new_tokens = session.sizes.new_tokens
    with closing(session.drive(max_num_seqs=size)) as drive:

        def ours(round_idx: int) -> float:
            requests = session.requests(session.prompts(size, round_idx=round_idx), has_plans=True)
            return drive.complete(requests, new_tokens=new_tokens).tokens_per_second

        def turn_of(peer: Peer) -> Callable[[int], float]:
            return lambda round_idx: peer(session.prompts(size, round_idx=round_idx), new_tokens)

        turns: dict[str, Callable[[int], float]] = {key: turn_of(peer) for key, peer in peers.items()}
        speeds = session.take_turns(f"end to end, batch {size}", {"hilora": ours, **turns})
    found.extras[f"tokens_per_second_hilora_b{size}"] = summarise(speeds["hilora"]).as_json()
    for key in peers:
        found.ratios[key] = summarise(ratios(speeds["hilora"], speeds[key]))
        found.extras[f"tokens_per_second_{key.removeprefix('vs_')}"] = summarise(speeds[key]).as_json()
    return found
