"""Measures HiLoRA's decode speed on a GPU against the base's, beside the roofline. Needs torch and transformers alone.

`PYTHONPATH=. python scripts/bench_gpu.py --out report.json` where there is a GPU; with `--device cpu --shape tiny`
anywhere, to see whether the script runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from hilora.errors import HiloraError
from hilora_lab.bench.gpu_bench import GpuBenchOrder, run_gpu_bench

_GOALS = {1: 0.91, 32: 0.90}
"""Share kept from a resident pool, by batch size."""


def main() -> None:
    parser = argparse.ArgumentParser(description="HiLoRA's decode speed on a GPU against the base's.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", default="llama-3.1-8b", help="llama-3.1-8b, qwen2.5-0.5b, llama-1024x12 or tiny")
    parser.add_argument("--batch", type=int, action="append", help="may be repeated; 1, 8, 32 and 128 if left out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="where to write the report as JSON")
    arguments = parser.parse_args()
    is_tiny = arguments.shape == "tiny"
    order = GpuBenchOrder(
        shape=arguments.shape,
        device=arguments.device,
        dtype=torch.float32 if arguments.device == "cpu" else torch.bfloat16,
        batch_sizes=tuple(arguments.batch or ((1, 2) if is_tiny else (1, 8, 32, 128))),
        prompt_len=8 if is_tiny else 128,
        new_tokens=6 if is_tiny else 48,
        num_rounds=arguments.rounds,
    )
    try:
        report = run_gpu_bench(order, on_progress=_print_progress)
    except HiloraError as error:
        sys.exit(f"{error.message} {error.remedy}")
    content = json.dumps(report, indent=1)
    if arguments.out is not None:
        arguments.out.write_text(f"{content}\n", encoding="utf-8")
    print(content)
    print(f"{'sets':<14} {'batch':>5} {'kept':>7} {'roofline':>9} {'goal':>5}", file=sys.stderr)
    for row in report["decode"]:
        goal = _GOALS.get(row["batch_size"]) if row["popularity"] == "resident_pool" else None
        cells = f"{row['popularity']:<14} {row['batch_size']:>5} {row['share_kept']['median']:>7.3f}"
        print(f"{cells} {row['roofline_share']:>9.3f} {goal or '':>5}", file=sys.stderr)


def _print_progress(title: str, done: int, total: int) -> None:
    if done == total:
        print(f"done: {title}", file=sys.stderr)


if __name__ == "__main__":
    main()
