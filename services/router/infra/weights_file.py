"""Factors of adapters that were learned from examples, as a file: what `hilora train lorahub` writes.

{"format": "hilora-weights", "version": 1, "weights": {"<adapter name>": <factor>, ...}}
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, cast

from hilora.errors import InvalidInput
from services.router.routing_options import MAX_COMPOSED_ADAPTERS, MAX_SCALE


def read_weights(path: Path) -> dict[str, float]:
    """The factors by adapter name.

    Raises:
        InvalidInput: `invalid_weights_file`.
    """
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _invalid(path, f"it cannot be read: {error}") from error
    fields = cast("dict[str, Any]", document) if isinstance(document, dict) else {}
    weights: Any = fields.get("weights")
    if (fields.get("format"), fields.get("version")) != ("hilora-weights", 1) or not isinstance(weights, dict):
        raise _invalid(path, "it is not a file of version 1")
    found = cast("dict[str, Any]", weights)
    if len(found) > MAX_COMPOSED_ADAPTERS:
        raise _invalid(path, f"it has {len(found)} factors; a plan has at most {MAX_COMPOSED_ADAPTERS} adapters")
    for name, factor in found.items():
        is_number = isinstance(factor, int | float) and not isinstance(factor, bool)
        if not is_number or not math.isfinite(factor) or abs(factor) > MAX_SCALE:
            raise _invalid(path, f"the factor of {name} is not a number within {MAX_SCALE:g} of 0")
    return {name: float(factor) for name, factor in found.items()}


def _invalid(path: Path, reason: str) -> InvalidInput:
    return InvalidInput(
        f"{path} has no usable factors: {reason}.",
        code="invalid_weights_file",
        remedy="Write it with `hilora train lorahub`.",
        place="HILORA_ROUTER_LORAHUB_WEIGHTS",
    )
