"""`python -m services.router`: one router until SIGTERM."""

from __future__ import annotations

from services.common import event_loop
from services.common.allocator import give_back_freed_memory
from services.common.imports import leave_out_training_packages
from services.common.lifecycle import run_until_signal
from services.common.log import configure_logging
from services.router.bootstrap import build_router
from services.router.settings import RouterSettings


def main() -> None:
    """Read the environment, serve, drain."""
    give_back_freed_memory()
    leave_out_training_packages()
    settings = RouterSettings()
    configure_logging(service="router", level=settings.log_level)
    event_loop.run(run_until_signal(build_router(settings), grace_seconds=settings.drain_seconds))


if __name__ == "__main__":
    main()
