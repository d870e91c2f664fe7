"""`python -m services.registry.ingest_worker`: the ingest process, configured like the registry itself."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time

import torch

from services.common.imports import leave_out_training_packages
from services.common.log import configure_logging, get_logger
from services.registry.ingest_process import build_ingest_worker
from services.registry.settings import RegistrySettings

_log = get_logger(__name__)

_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_FINISH = 10.0


def main() -> None:
    """Take jobs until SIGTERM or SIGINT."""
    leave_out_training_packages()
    parent = os.getppid()
    settings = RegistrySettings()  # pyright: ignore[reportCallIssue]  (filled from the environment)
    configure_logging(service="registry-ingest", level=settings.log_level)
    if settings.exit_with_parent:
        threading.Thread(target=_end_with, args=(parent,), name="parent-watch", daemon=True).start()
    os.nice(settings.ingest_niceness)
    # Small matrices and short texts: threads of torch's own would only take cores from the workers beside us.
    torch.set_num_threads(1)
    worker = build_ingest_worker(settings)
    # What the libraries made at import is never garbage; taking it apart would delay the end by seconds.
    gc.freeze()
    _log.info("ingest_process_ready")
    worker.serve()


def _end_with(parent: int) -> None:
    """End this process when its parent is gone: an orphan would keep jobs from the process of the next start."""
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    _log.warning("parent_gone")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_SECONDS_TO_FINISH)
    os._exit(1)


if __name__ == "__main__":
    main()
