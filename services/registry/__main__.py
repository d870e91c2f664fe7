"""`python -m services.registry`: the registry service, configured by `HILORA_REGISTRY_*`."""

from __future__ import annotations

import asyncio

from services.common.imports import leave_out_training_packages
from services.common.lifecycle import run_until_signal
from services.common.log import configure_logging
from services.registry.bootstrap import build_registry
from services.registry.settings import RegistrySettings


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    leave_out_training_packages()
    settings = RegistrySettings()  # pyright: ignore[reportCallIssue]  (filled from the environment)
    configure_logging(service="registry", level=settings.log_level)
    asyncio.run(run_until_signal(build_registry(settings), grace_seconds=settings.drain_grace_seconds))


if __name__ == "__main__":
    main()
