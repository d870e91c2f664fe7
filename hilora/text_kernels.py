"""Whether the letters of texts are handled by compiled code, or by NumPy.

Installing the package compiles `hilora/native` where there is a C compiler. Without it everything is computed all the
same, in several times the time.
"""

from __future__ import annotations

try:
    from hilora import _native as native
except ImportError:
    native = None


def are_text_kernels_compiled() -> bool:
    """Whether they are there."""
    return native is not None
