"""Whether the letters of texts are handled by compiled code, or by NumPy.

Installing the package compiles `hilora/native` where there is a C compiler. Without it everything is computed all the
same, and a decision takes 1.7 times as long.
"""

from __future__ import annotations

try:
    from hilora import _native as native
except ImportError:
    native = None


def are_text_kernels_compiled() -> bool:
    """Whether they are there."""
    return native is not None
