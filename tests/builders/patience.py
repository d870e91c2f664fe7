"""How long tests wait for other processes before they give up.

A wait ends as soon as what it waits for is there: it is long only on a machine that is busy with other things. There,
`HILORA_TEST_PATIENCE=5` makes all of them five times as long.
"""

from __future__ import annotations

import os

PATIENCE = float(os.environ.get("HILORA_TEST_PATIENCE", "1"))
"""What every longest wait is multiplied by."""


def patient(seconds: float) -> float:
    """A longest wait, in seconds."""
    return seconds * PATIENCE
