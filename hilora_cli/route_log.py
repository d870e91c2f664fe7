"""`hilora route-log`: what a router decided, from the log that it keeps."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import typer

_MAX_SHOWN = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteLogSummary:
    """A route log in a few numbers."""

    num_generations: int
    num_automatic: int
    """Those whose adapters the router chose."""
    num_unreadable: int
    """Lines that are no records: the last one of a router that was killed."""
    outcomes: dict[str, int]
    shares: dict[str, float]
    """Of the automatic decisions, by adapter, largest first; several adapters of one plan count each."""
    share_entropy_bits: float
    """Of the adapters' parts in the traffic: 0 if one takes all, log2 of their number if all take the same."""
    out_of_distribution_rate: float
    mean_top_posterior: float | None
    p50_ttft_seconds: float | None
    p95_ttft_seconds: float | None


def read_records(files: Iterable[Path]) -> Iterator[dict[str, Any] | None]:
    """The records of some files; None for a line that is none."""
    for file in files:
        with file.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    record: object = json.loads(line)
                except ValueError:
                    yield None
                    continue
                yield cast("dict[str, Any]", record) if isinstance(record, dict) and "outcome" in record else None


def summarise(records: Iterable[dict[str, Any] | None]) -> RouteLogSummary:
    """Count records."""
    outcomes: Counter[str] = Counter()
    chosen: Counter[str] = Counter()
    top_posteriors: list[float] = []
    ttfts: list[float] = []
    num_automatic = num_strangers = num_unreadable = 0
    for record in records:
        if record is None:
            num_unreadable += 1
            continue
        outcomes[str(record["outcome"])] += 1
        if record.get("ttft_seconds") is not None:
            ttfts.append(float(record["ttft_seconds"]))
        if record.get("mode") in {None, "explicit"}:
            continue
        num_automatic += 1
        num_strangers += bool(record["is_out_of_distribution"])
        chosen.update({str(budget["adapter"]) for budget in record["plan"]})
        if record["candidates"]:
            top_posteriors.append(max(float(candidate["posterior"]) for candidate in record["candidates"]))
    total = chosen.total()
    ttfts.sort()
    return RouteLogSummary(
        num_generations=outcomes.total(),
        num_automatic=num_automatic,
        num_unreadable=num_unreadable,
        outcomes=dict(sorted(outcomes.items())),
        shares={name: number / num_automatic for name, number in chosen.most_common()},
        share_entropy_bits=-sum(number / total * math.log2(number / total) for number in chosen.values()) + 0.0,
        out_of_distribution_rate=num_strangers / num_automatic if num_automatic else 0.0,
        mean_top_posterior=sum(top_posteriors) / len(top_posteriors) if top_posteriors else None,
        p50_ttft_seconds=_quantile(ttfts, 0.5),
        p95_ttft_seconds=_quantile(ttfts, 0.95),
    )


def _quantile(ordered: list[float], share: float) -> float | None:
    """The smallest value that is not below `share` of them."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def route_log(
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="Files of a route log.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output.")] = False,
) -> None:
    """Summarise what a router decided: shares of the adapters, out-of-distribution rate, latencies."""
    from dataclasses import asdict

    summary = summarise(read_records(files))
    if as_json:
        print(json.dumps(asdict(summary)))
        return
    print(f"generations            {summary.num_generations} ({_joined(summary.outcomes)})")
    print(f"chosen by the router   {summary.num_automatic}")
    print(f"out of distribution    {summary.out_of_distribution_rate:.1%}")
    print(f"entropy of the shares  {summary.share_entropy_bits:.2f} bits")
    if summary.mean_top_posterior is not None:
        print(f"mean top posterior     {summary.mean_top_posterior:.3f}")
    if summary.p50_ttft_seconds is not None and summary.p95_ttft_seconds is not None:
        print(f"first text             {summary.p50_ttft_seconds:.3f} s median, {summary.p95_ttft_seconds:.3f} s p95")
    if summary.num_unreadable:
        print(f"unreadable lines       {summary.num_unreadable}")
    for name, share in list(summary.shares.items())[:_MAX_SHOWN]:
        print(f"  {share:6.1%}  {name}")


def _joined(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.items()) or "none"
