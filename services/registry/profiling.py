"""From sample texts to an adapter's place in the encoder's space.

Statistics are always computed here, from texts; nothing numerical is taken from an upload.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hilora.errors import InvalidAdapter
from services.registry.adapter_files import SAMPLES_FILE
from services.registry.artifact import SampleProfile
from services.registry.ports import TextEncoder
from services.registry.strict_json import parse_strictly

MAX_SAMPLES = 1000
"""More texts do not move a mean any more, and each costs an embedding."""

MAX_SAMPLE_CHARACTERS = 32_768
"""Encoders read the first few hundred tokens."""

MAX_SAMPLES_BYTES = 16 * 1024 * 1024
"""Looked at before anything is read: the file comes from a stranger."""

_MAX_LINE_BYTES = 1024 * 1024
"""A text of the largest size takes less, every character of it escaped."""
_MAX_LINE_VALUES = 65_536
"""Commas of the text included."""

_EXAMPLE = 'One JSON object a line: {"text": "a prompt of the adapter\'s task"}; about 20 lines are enough.'


def read_samples(path: Path) -> tuple[str, ...]:
    """The texts of a `samples.jsonl`.

    Raises:
        InvalidAdapter: `no_samples` if the file is missing, `empty_samples` if it has no text, `invalid_samples`
            with the line if it is not such a file, `too_many_samples`.
    """
    try:
        if path.stat().st_size > MAX_SAMPLES_BYTES:
            raise InvalidAdapter(
                f"{SAMPLES_FILE} has more than {MAX_SAMPLES_BYTES} bytes.",
                code="too_many_samples",
                remedy="Send a random choice of the texts.",
                place=SAMPLES_FILE,
            )
        with path.open("rb") as lines:
            texts = _texts_of(lines)
    except FileNotFoundError as error:
        raise InvalidAdapter(
            "The adapter comes without sample texts, so nothing says which requests are meant for it.",
            code="no_samples",
            remedy=f"Send a {SAMPLES_FILE} along. {_EXAMPLE}",
            place=SAMPLES_FILE,
        ) from error
    if not texts:
        raise InvalidAdapter(f"{SAMPLES_FILE} is empty.", code="empty_samples", remedy=_EXAMPLE, place=SAMPLES_FILE)
    return tuple(texts)


def profile(texts: tuple[str, ...], encoder: TextEncoder, *, source: str) -> SampleProfile:
    """Embed sample texts.

    Args:
        texts: at least one.
        encoder: the encoder that the routers use, too.
        source: where the texts came from, for the record.
    """
    return SampleProfile(texts=texts, embeddings_mE=encoder.encode(texts), encoder_id=encoder.encoder_id, source=source)


def _texts_of(lines: Iterable[bytes]) -> list[str]:
    """The texts, one line at a time: what comes after too many is not looked at."""
    texts: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if len(texts) == MAX_SAMPLES:
            raise InvalidAdapter(
                f"{SAMPLES_FILE} has more than {MAX_SAMPLES} texts.",
                code="too_many_samples",
                remedy="Send a random choice of them.",
                place=SAMPLES_FILE,
            )
        texts.append(_text_of(line, number))
    return texts


def _text_of(line: bytes, number: int) -> str:
    if len(line) > _MAX_LINE_BYTES:
        raise _invalid(number, f"has more than {_MAX_LINE_BYTES} bytes")
    try:
        fields: Any = parse_strictly(line, max_values=_MAX_LINE_VALUES, encoding="utf-8-sig")
    except ValueError as error:
        raise _invalid(number, f"is not JSON ({error})") from error
    text = fields.get("text") if isinstance(fields, dict) else None
    if not isinstance(text, str):
        raise _invalid(number, 'has no string under "text"')
    if not text.strip():
        raise _invalid(number, "has an empty text")
    if len(text) > MAX_SAMPLE_CHARACTERS:
        raise _invalid(number, f"has a text of more than {MAX_SAMPLE_CHARACTERS} characters")
    return text


def _invalid(number: int, reason: str) -> InvalidAdapter:
    return InvalidAdapter(
        f"Line {number} of {SAMPLES_FILE} {reason}.",
        code="invalid_samples",
        remedy=_EXAMPLE,
        place=f"{SAMPLES_FILE}:{number}",
    )
