"""The CPU kernels, if they were compiled: a step's ROC work in one call per layer, linear layers for few rows, and the
attention of decode tokens.

Shapes: T rows, D in-features, O out-features; of attention: B tokens, H query heads, K key-value heads, N slots,
L positions of a slot, E head dimension.

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
"""Rows up to which `small_linear` is not slower than the general product. Measured on one thread (d = 1024, Zen 5,
weights from memory): 77 GFLOPS at 8 rows and 150 at 32, where the general product of torch reaches 40 and 75."""

_WIDE_PRODUCT = (
    # Without an underscore-free name in torch; what its compiler calls for linear layers on CPUs.
    getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    else None
)
"""oneDNN's float32 product where it is at hand and worth taking. `functional.linear` calls MKL, which does not use the
512-bit units of AMD's processors: 100 GFLOPS where oneDNN, which torch brings as well, reaches 200 (d = 1024, 32 to
1,024 rows, one thread, Zen 5). Where MKL uses them both are alike."""


def is_native_usable(*, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernels were compiled and handle this type on this device: float32 on a CPU."""
    return _native is not None and device.type == "cpu" and dtype is torch.float32


def linear(x: torch.Tensor, weight_OD: torch.Tensor, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    """`x W^T + bias` by the fastest product for float32 on the CPU, unless somebody asks for gradients: the kernel for
    few rows, oneDNN's for many."""
    if not is_plain_linear(x, weight_OD, bias_O):
        return functional.linear(x, weight_OD, bias_O)
    if _native is not None and x.numel() <= MAX_ROWS * x.shape[-1]:
        return small_linear(x, weight_OD, bias_O)
    if _WIDE_PRODUCT is not None:
        return _WIDE_PRODUCT(x, weight_OD, bias_O, "none", [], "")
    return functional.linear(x, weight_OD, bias_O)


def is_plain_linear(x: torch.Tensor, weight_OD: torch.Tensor, bias_O: torch.Tensor | None) -> bool:
    """Whether nothing but float32 numbers on the CPU is asked for: no gradients, no other layout."""
    return (
        x.dtype is torch.float32
        and x.device.type == "cpu"
        and _is_plain(weight_OD)
        and (bias_O is None or _is_plain(bias_O))
        and not (torch.is_grad_enabled() and (weight_OD.requires_grad or x.requires_grad))
    )


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


_ATTENTION_LANES = 16
"""Head dimensions are multiples of what one vector holds."""


def can_attend(keys_NKLE: torch.Tensor) -> bool:
    """Whether `decode_attention` handles a cache."""
    return (
        is_native_usable(dtype=keys_NKLE.dtype, device=keys_NKLE.device)
        and keys_NKLE.is_contiguous()
        and keys_NKLE.shape[-1] % _ATTENTION_LANES == 0
    )


def decode_attention(
    query_BHE: torch.Tensor,
    keys_NKLE: torch.Tensor,
    values_NKLE: torch.Tensor,
    *,
    slots_B: torch.Tensor,
    first_B: torch.Tensor,
    until_B: torch.Tensor,
    scaling: float,
    softcap: float | None,
) -> torch.Tensor:
    """Attention of one token per sequence, each over its own positions, keys and values read where they lie.

    Nothing is padded, and each key serves all heads that share it. A token's result is the same to the bit whatever the
    other tokens are. Measured against `scaled_dot_product_attention` on one thread: 1.2 to 1.9 times as fast for two to
    four heads a key, 64 and 128 wide, 144 and 780 positions; as fast for seven heads a key.

    Args:
        query_BHE: float32 on the CPU.
        keys_NKLE: as `can_attend` wants them.
        values_NKLE: of the same shape.
        slots_B: int64, the slot of each token.
        first_B: int64, the first position each token sees.
        until_B: int64, one past the last position each token sees; above the first.
        scaling: factor of the scores, positive.
        softcap: `c` of `c tanh(score / c)`, or None.

    Returns:
        `[B, H, E]`.
    """
    assert _native is not None, "the kernels were not compiled"
    num_tokens, num_heads, head_dim = query_BHE.shape
    query_BHE = query_BHE.contiguous()
    out_BHE = torch.empty_like(query_BHE)
    shape = (
        num_tokens,
        num_heads,
        keys_NKLE.shape[1],
        head_dim,
        keys_NKLE.stride(0),
        keys_NKLE.stride(1),
    )
    _native.decode_attention(
        shape,
        scaling,
        softcap or 0.0,
        query_BHE.data_ptr(),
        keys_NKLE.data_ptr(),
        values_NKLE.data_ptr(),
        slots_B.data_ptr(),
        first_B.data_ptr(),
        until_B.data_ptr(),
        out_BHE.data_ptr(),
        torch.get_num_threads(),
    )
    return out_BHE
