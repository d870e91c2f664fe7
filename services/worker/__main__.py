"""`python -m services.worker`: one worker as a process, or, under torchrun, one of the processes of a worker."""

from __future__ import annotations

import asyncio
import sys

from hilora.errors import HiloraError
from services.common.imports import leave_out_training_packages
from services.common.lifecycle import run_until_signal
from services.common.log import configure_logging, get_logger
from services.worker.bootstrap import build_worker
from services.worker.follower import run_follower
from services.worker.settings import ProcessPlace, WorkerSettings


def main() -> int:
    """Run until SIGTERM or SIGINT. Returns the exit status: 2 if the configuration is unusable."""
    leave_out_training_packages()
    settings = WorkerSettings()  # pyright: ignore[reportCallIssue] fields come from the environment
    configure_logging(service="worker", level=settings.log_level)
    place = ProcessPlace()
    try:
        if place.rank > 0:
            run_follower(settings, place)
        else:
            asyncio.run(run_until_signal(build_worker(settings, place), grace_seconds=settings.drain_seconds))
    except HiloraError as error:
        get_logger(__name__).error("worker_refused_to_start", code=error.code, reason=str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
