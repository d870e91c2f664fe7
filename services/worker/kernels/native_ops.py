"""The CPU kernel, if it was compiled: shrink, gate and expand of a whole step in one call per linear layer.

The C sources lie in `native/`; installing the package compiles them where there is a C compiler. `torch_ops` does the
same work on every device and in every type, and is what this kernel is tested against.
"""

from __future__ import annotations

import torch

# Before the kernel: torch brings the OpenMP library that both share, and its threads.
torch.get_num_threads()

try:
    from services.worker.kernels._native import Table as NativeTable
except ImportError:
    NativeTable = None

__all__ = ["NativeTable", "is_native_usable"]


def is_native_usable(*, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernel was compiled and handles this type on this device: float32 on a CPU."""
    return NativeTable is not None and device.type == "cpu" and dtype is torch.float32
