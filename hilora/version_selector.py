"""Which version of an adapter a text such as `name@3` or `name@1f0c2a9b` means.

A selector of fewer than eight decimal digits is a version number, anything else the beginning of a revision in at
least eight hex digits: no text can be both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from hilora.adapter import ADAPTER_NAME_PATTERN
from hilora.errors import InvalidInput

_MIN_REVISION_PREFIX = 8
_MAX_REVISION_LENGTH = 64
_HEX_DIGITS = frozenset("0123456789abcdef")


class NumberedVersion(Protocol):
    """What can be selected."""

    @property
    def version(self) -> int:
        """Counts an adapter's versions from 1."""
        ...

    @property
    def revision(self) -> str:
        """Content hash, 64 hex digits."""
        ...


_V = TypeVar("_V", bound=NumberedVersion)


def split_reference(reference: str) -> tuple[str, str | None]:
    """`name` or `name@selector` as its two parts; the selector is None where there is none.

    Raises:
        InvalidInput: `invalid_adapter_reference`, for a text that is neither.
    """
    adapter_name, at, selector = reference.partition("@")
    if not ADAPTER_NAME_PATTERN.fullmatch(adapter_name) or (at and not _is_selector(selector)):
        raise InvalidInput(
            f"{reference[:200]!r} names no adapter version.",
            code="invalid_adapter_reference",
            remedy="Use name, name@3 (a version number) or name@ with at least 8 digits of its revision.",
            place="version",
        )
    return adapter_name, selector if at else None


def select_version(versions: Sequence[_V], selector: str) -> _V | None:
    """The one version that a selector means; None if there is none, or a prefix fits several.

    Args:
        versions: those to choose from.
        selector: as `split_reference` gives it; any other text selects nothing.
    """
    if not _is_selector(selector):
        return None
    if len(selector) < _MIN_REVISION_PREFIX:
        found = [version for version in versions if version.version == int(selector)]
    else:
        found = [version for version in versions if version.revision.startswith(selector)]
    return found[0] if len(found) == 1 else None


def _is_selector(text: str) -> bool:
    if len(text) < _MIN_REVISION_PREFIX:
        return text.isascii() and text.isdecimal()
    return len(text) <= _MAX_REVISION_LENGTH and _HEX_DIGITS.issuperset(text)
