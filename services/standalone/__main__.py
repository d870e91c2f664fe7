"""`python -m services.standalone`: the whole system until SIGTERM."""

from __future__ import annotations

import asyncio
import sys

from hilora.errors import HiloraError
from services.common.lifecycle import run_until_signal
from services.common.log import configure_logging, get_logger
from services.standalone.bootstrap import build_standalone
from services.standalone.settings import StandaloneSettings


def main() -> int:
    """Read the environment, serve, drain. Returns the exit status: 2 if it cannot start."""
    settings = StandaloneSettings()  # pyright: ignore[reportCallIssue]  (fields come from the environment)
    configure_logging(service="standalone", level=settings.log_level)
    try:
        asyncio.run(run_until_signal(build_standalone(settings), grace_seconds=settings.drain_seconds))
    except (HiloraError, OSError, ValueError) as error:
        get_logger(__name__).error("refused_to_start", reason=str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
