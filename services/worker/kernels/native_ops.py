"""The CPU kernels, if they were compiled: a step's ROC work in one call per layer, and linear layers for few rows.

Shapes: T rows, D in-features, O out-features.

The C sources lie in `native/`; installing the package compiles them where there is a C compiler. `torch_ops` and
`torch.nn.functional.linear` do the same work on every device and in every type, and are what these are tested against.
"""

from __future__ import annotations

import torch
from torch.nn import functional

# Before the kernels: torch brings the OpenMP library that both share, and its threads.
torch.get_num_threads()

try:
    from services.worker.kernels import _native
except ImportError:
    _native = None

NativeTable = None if _native is None else _native.Table
"""The tables of a step as the kernel wants them; None if it was not compiled."""

MAX_ROWS = 32
"""Rows up to which `small_linear` is not slower than the general product. Measured on one thread (d = 1024): 1.7 times
as fast at 2 rows, 1.25 to 1.9 times at 8, and no slower at 1 or at 32."""


def is_native_usable(*, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernels were compiled and handle this type on this device: float32 on a CPU."""
    return _native is not None and device.type == "cpu" and dtype is torch.float32


def linear(x: torch.Tensor, weight_OD: torch.Tensor, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    """`x W^T + bias`, by the kernel where it is usable, the rows are few and nobody asks for gradients."""
    num_rows = x.numel() // max(1, x.shape[-1])
    if (
        num_rows > MAX_ROWS
        or not is_native_usable(dtype=x.dtype, device=x.device)
        or not _is_plain(weight_OD)
        or not (bias_O is None or _is_plain(bias_O))
        or (torch.is_grad_enabled() and (weight_OD.requires_grad or x.requires_grad))
    ):
        return functional.linear(x, weight_OD, bias_O)
    return small_linear(x, weight_OD, bias_O)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether the kernel can take its address: float32 on the CPU, elements next to each other."""
    return tensor.dtype is torch.float32 and tensor.device.type == "cpu" and tensor.is_contiguous()


def small_linear(x: torch.Tensor, weight_OD: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
    """`x W^T + bias` for a handful of rows, `[..., D]` to `[..., O]`, without gradients.

    Sums have the same order whatever the other rows are: alone and in a batch, a row comes out the same to the bit.

    Args:
        x: float32 on the CPU.
        weight_OD: float32 on the CPU.
        bias_O: float32 on the CPU, or None.
    """
    assert _native is not None, "the kernels were not compiled"
    height, width = weight_OD.shape
    x_TD = x.reshape(-1, width).contiguous()
    weight_OD = weight_OD.contiguous()
    y = x.new_empty(*x.shape[:-1], height)
    _native.small_linear(
        x_TD.data_ptr(),
        width,
        x_TD.shape[0],
        weight_OD.data_ptr(),
        0 if bias_O is None else bias_O.data_ptr(),
        width,
        height,
        y.data_ptr(),
        height,
        torch.get_num_threads(),
    )
    return y
