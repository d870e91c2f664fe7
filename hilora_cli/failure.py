"""How the command says that something went wrong: one sentence, what to do about it, and an exit status.

Status 0: done; 1: refused, failed or not found; 2: misused; 3: try again later; 4: the key does not open this.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager

from hilora.errors import AccessDenied, Exhausted, HiloraError, Unavailable

EXIT_FAILED = 1
EXIT_UNAVAILABLE = 3
EXIT_DENIED = 4


@contextmanager
def reported_errors() -> Generator[None]:
    """Print an error of ours, or of the operating system, instead of a traceback, and exit with its status."""
    try:
        yield
    except HiloraError as error:
        print_failure(error.message, error.remedy, code=error.code)
        sys.exit(exit_status(error))
    except OSError as error:
        # A file that is missing or a port that is taken speaks for itself.
        print_failure(str(error), None, code=None)
        sys.exit(EXIT_FAILED)


def exit_status(error: HiloraError) -> int:
    """What a script learns from an error without reading it."""
    if isinstance(error, AccessDenied):
        return EXIT_DENIED
    return EXIT_UNAVAILABLE if isinstance(error, Unavailable | Exhausted) else EXIT_FAILED


def print_failure(message: str, remedy: str | None, *, code: str | None) -> None:
    """Message in red and remedy below it, on standard error."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    line = Text(message, style="red")
    if code:
        line.append(f" [{code}]", style="dim")
    console.print(line)
    if remedy:
        console.print(Text(remedy, style="yellow"))
