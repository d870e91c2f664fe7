"""Random load with random faults on an engine over a tiny model; prints a JSON summary, exits with 1 if a check fails.

    python scripts/soak_engine.py --seconds 600 --seed 1

The load, the faults and the checks are those of `tests/soak`, which runs them for some seconds.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

import torch


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long, roughly (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="of load and faults (default: 0)")
    parser.add_argument("--kv-layout", choices=["slots", "pages"], default="pages", help="(default: pages)")
    parser.add_argument("--verbose", action="store_true", help="show the engine's log, full of what was planted")
    options = parser.parse_args()
    # The tests are no installed package: they are found in the checkout.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.soak.engine_soak import EngineSoak

    if not options.verbose:
        logging.disable(logging.CRITICAL)
    # A model this small is slower on several threads.
    torch.set_num_threads(1)
    report = EngineSoak(seed=options.seed, seconds=options.seconds, kv_layout=options.kv_layout).run()
    print(json.dumps(vars(report), indent=2))
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
