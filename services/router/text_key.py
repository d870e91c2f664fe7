"""What stands for a text where it is remembered."""

from __future__ import annotations

import hashlib


def text_key(text: str) -> bytes:
    """A hash of 16 bytes, so that nobody's words are kept."""
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
