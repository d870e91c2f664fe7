"""What a check of an adapter found, and what it does with a reason to refuse one.

A check raises the first reason by default. Given a `RefusalLog` it notes the reason, leaves out what cannot be read and
goes on: so one upload tells its sender everything at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from hilora.errors import InvalidAdapter


class Severity(StrEnum):
    """What a finding means for its adapter."""

    ERROR = "error"
    """It is refused."""
    WARNING = "warning"
    """It is served, and may not do what its owner expects."""
    INFO = "info"
    """For the record."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that is to be said about an adapter."""

    code: str
    """Stable and snake_case, like an error's."""
    severity: Severity
    place: str
    """The file, field, tensor or module it is about."""
    message: str
    """What was found, in one sentence."""
    remedy: str
    """What to do about it; empty where nothing needs to be done."""

    @staticmethod
    def of(error: InvalidAdapter) -> Finding:
        """The finding that says the same as an error."""
        return Finding(
            code=error.code,
            severity=Severity.ERROR,
            place=error.place or "",
            message=error.message,
            remedy=error.remedy or "",
        )


Refuse = Callable[[InvalidAdapter], None]
"""What a check calls with each reason for a refusal; it may raise it, or return so that the check goes on."""


def raise_at_once(error: InvalidAdapter) -> None:
    """The strict way: the first reason ends the check. Raises the error itself."""
    raise error


class RefusalLog:
    """The patient way: a `Refuse` that remembers every reason, the first `max_errors` of them word by word.

    A file of a few megabytes can be wrong in a million places.
    """

    def __init__(self, *, max_errors: int = 500) -> None:
        self._max_errors = max_errors
        self.errors: list[InvalidAdapter] = []
        """In the order in which they were found."""
        self.num_omitted = 0
        """How many came after the list was full."""

    @property
    def is_full(self) -> bool:
        """Whether what is found from now on is counted and no longer told."""
        return len(self.errors) >= self._max_errors

    def __call__(self, error: InvalidAdapter) -> None:
        """Note a reason."""
        if self.is_full:
            self.num_omitted += 1
        else:
            self.errors.append(error)
