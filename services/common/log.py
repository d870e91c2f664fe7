"""Structured logs: one JSON object a line, or coloured text on a terminal. Prompt texts are never logged."""

from __future__ import annotations

import logging
import sys
from typing import cast

import structlog
from structlog.stdlib import BoundLogger


def configure_logging(*, service: str, level: str = "INFO") -> None:
    """Send our events and those of the libraries through one formatter to standard error.

    Args:
        service: value of the `service` key of every event.
        level: name of the lowest level that is shown.
    """
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=BoundLogger,
        cache_logger_on_first_use=True,
    )
    renderers: list[structlog.types.Processor]
    if sys.stderr.isatty():
        renderers = [structlog.dev.ConsoleRenderer()]
    else:
        renderers = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Libraries that report every request or connection at INFO drown our own events.
    for noisy in ("httpx", "uvicorn.access", "celery.redirected", "sentence_transformers", "huggingface_hub"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    structlog.contextvars.bind_contextvars(service=service)


def get_logger(name: str) -> BoundLogger:
    """A logger whose events carry key-value pairs: `log.info("ingest_ready", adapter=...)`."""
    return cast("BoundLogger", structlog.get_logger(name))
