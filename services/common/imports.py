"""What is installed beside a service and of no use to it is not imported."""

from __future__ import annotations

import sys
from typing import Any, cast


def leave_out_training_packages() -> None:
    """Have libraries find peft missing; to be called before they are imported, by processes that only serve.

    Where peft is installed, as it is for development, transformers imports it, peft imports bitsandbytes, and that
    imports torch's compiler: a quarter of an encoder's imports. Nothing that serves uses peft.
    """
    sys.modules.setdefault("peft", cast("Any", None))
