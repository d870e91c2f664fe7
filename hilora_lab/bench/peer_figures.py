"""HiLoRA's engine against what others do, prompts included: output tokens per second over the same prompts.

Ours runs the plans, three adapters a request; `generate` and continuous batching run the base alone. Against continuous
batching, whose trouble is attention over long contexts, the figure is what comes once the prompts are read; from end to
end, half the time is spent on prompts, which costs both the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from pathlib import Path

from hilora_lab.bench.engine_drive import EngineDrive
from hilora_lab.bench.figure import Measured
from hilora_lab.bench.pairing import ratios, summarise
from hilora_lab.bench.peers import (
    Peer,
    Prompts,
    Speed,
    continuous_batching_peer,
    generate_peer,
    peft_arrow_peer,
    peft_mixed_peer,
)
from hilora_lab.bench.peft_folders import write_peft_folders
from hilora_lab.bench.session import BenchSession

_LONG_BATCH = 16
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
        turn = _turns(
            session, num_prompts=_LONG_BATCH, prompt_len=sizes.long_prompt_len, new_tokens=sizes.long_new_tokens
        )
        title = f"continuous batching, {sizes.long_prompt_len} tokens"
        speeds = session.take_turns(title, {"hilora": turn(_ours(session, drive)), "transformers_cb": turn(peer)})
    ours, theirs = speeds["hilora"], speeds["transformers_cb"]
    found.ratios["vs_transformers_cb_768"] = summarise(ratios(_decode(ours), _decode(theirs)))
    found.extras["end_to_end_vs_transformers_cb_768"] = _ratio(_end_to_end(ours), _end_to_end(theirs))
    for name, values in speeds.items():
        found.extras[f"tokens_per_second_{name}_long_b{_LONG_BATCH}"] = summarise(_end_to_end(values)).as_json()
        found.extras[f"decode_tokens_per_second_{name}_long_b{_LONG_BATCH}"] = summarise(_decode(values)).as_json()
    return found


def _against(session: BenchSession, size: int, peers: dict[str, Peer]) -> Measured:
    found = Measured()
    sizes = session.sizes
    with closing(session.drive(max_num_seqs=size)) as drive:
        turn = _turns(session, num_prompts=size, prompt_len=sizes.prompt_len, new_tokens=sizes.new_tokens)
        turns = {"hilora": turn(_ours(session, drive)), **{key: turn(peer) for key, peer in peers.items()}}
        speeds = session.take_turns(f"end to end, batch {size}", turns)
    ours = speeds["hilora"]
    found.extras[f"tokens_per_second_hilora_b{size}"] = summarise(_end_to_end(ours)).as_json()
    for key in peers:
        theirs = speeds[key]
        found.ratios[key] = summarise(ratios(_end_to_end(ours), _end_to_end(theirs)))
        found.extras[f"tokens_per_second_{key.removeprefix('vs_')}"] = summarise(_end_to_end(theirs)).as_json()
        found.extras[f"decode_{key}"] = _ratio(_decode(ours), _decode(theirs))
    return found


def _ours(session: BenchSession, drive: EngineDrive) -> Peer:
    """Our engine as one of the peers, every request with a plan of its own."""

    def run(prompts: Prompts, new_tokens: int) -> Speed:
        times = drive.complete(session.requests(prompts, has_plans=True), new_tokens=new_tokens)
        return Speed(end_to_end=times.tokens_per_second, decode=times.decode_tokens_per_second)

    return run


def _turns(
    session: BenchSession, *, num_prompts: int, prompt_len: int, new_tokens: int
) -> Callable[[Peer], Callable[[int], Speed]]:
    """Makes a peer's turn: prompts that are new in every round, and the same for all peers."""

    def of_peer(peer: Peer) -> Callable[[int], Speed]:
        def run(round_idx: int) -> Speed:
            size, tokens = session.size_of_round(round_idx, num_prompts=num_prompts, new_tokens=new_tokens)
            return peer(session.prompts(size, length=prompt_len, round_idx=round_idx), tokens)

        return run

    return of_peer


def _end_to_end(speeds: Sequence[Speed]) -> list[float]:
    return [speed.end_to_end for speed in speeds]


def _decode(speeds: Sequence[Speed]) -> list[float]:
    return [speed.decode for speed in speeds]


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float | int]:
    return summarise(ratios(ours, theirs)).as_json()
