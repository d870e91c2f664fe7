"""Tags of adapters: words by which a request can narrow the pool down."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hilora.errors import InvalidInput

TAG_PATTERN = re.compile(r"[a-z0-9][a-z0-9._:-]{0,63}")
"""Lower case, safe in URLs and logs: `legal`, `lang:de`, `team.search`."""

MAX_TAGS = 32
"""Tags of one adapter, and of one request."""


def checked_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """The tags, each once, sorted.

    Raises:
        InvalidInput: `invalid_tag`, for a word that cannot be one, or too many of them.
    """
    found = sorted(set(tags))
    wrong = next((tag for tag in found if not TAG_PATTERN.fullmatch(tag)), None)
    if wrong is not None:
        raise InvalidInput(
            f"{wrong[:80]!r} cannot be a tag.",
            code="invalid_tag",
            remedy="Use 1 to 64 lower-case letters, digits, '.', '_', ':' or '-', starting with a letter or digit.",
            place="tags",
        )
    if len(found) > MAX_TAGS:
        raise InvalidInput(
            f"{len(found)} tags are more than {MAX_TAGS}.", code="invalid_tag", remedy="Use fewer.", place="tags"
        )
    return tuple(found)
