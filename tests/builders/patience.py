"""How long tests wait before they call something broken: one factor for machines that are slow or shared."""

from __future__ import annotations

import os

PATIENCE = float(os.environ.get("HILORA_TEST_PATIENCE", "1"))
"""The factor; `HILORA_TEST_PATIENCE`, 1 by default."""


def patient(seconds: float) -> float:
    """A limit of a healthy machine, as this one gets it. Nothing becomes slower by it: only giving up comes later."""
    return seconds * PATIENCE
