"""Which errors say that the device is lost for this process.

After some faults (a kernel that reads where it may not, an assertion inside a kernel, memory that cannot be corrected)
every further call of the process fails, whatever it asks for: NVIDIA's runtime documentation says of each such code
that "the process must be terminated and relaunched". Others end with the call they came from: memory that is out, a
launch that was refused, a capture of what cannot be captured.

torch tells them apart by text alone: its exceptions carry the runtime's own words, behind the name of the layer that
speaks ("CUDA error: ...", "HIP error: ...", "Triton Error [CUDA]: ..."), newer ones also the name of the code. Since
errors of kernels are told late, any call may raise them, not only the one that is to blame.
"""

from __future__ import annotations

import re
from enum import Enum, auto

import torch

from services.worker.engine.execution.failures import linked_errors


class DeviceVerdict(Enum):
    """What an error says about the device."""

    FINE = auto()
    """Nothing: it came from elsewhere, or the device goes on."""
    UNCLEAR = auto()
    """The device refused something; whether it would do so again, only asking it can tell."""
    LOST = auto()
    """No call will succeed any more."""


_ACCELERATOR_ERROR: type[RuntimeError] | None = getattr(torch, "AcceleratorError", None)
"""Older versions of torch raise a bare RuntimeError."""
_SPEAKERS = re.compile(r"\b(CUDA|HIP|CUBLAS|CUDNN|NCCL|cuBLAS|cuDNN|hipBLAS)\b|Triton Error")
_FATAL = {
    "cudaErrorIllegalAddress": "an illegal memory access was encountered",
    "cudaErrorAssert": "device-side assert triggered",
    "cudaErrorLaunchFailure": "unspecified launch failure",
    "cudaErrorLaunchTimeout": "the launch timed out and was terminated",
    "cudaErrorMisalignedAddress": "misaligned address",
    "cudaErrorIllegalInstruction": "an illegal instruction was encountered",
    "cudaErrorInvalidAddressSpace": "operation not supported on global/shared address space",
    "cudaErrorInvalidPc": "invalid program counter",
    "cudaErrorHardwareStackError": "hardware stack error",
    "cudaErrorECCUncorrectable": "uncorrectable ECC error encountered",
    "cudaErrorNvlinkUncorrectable": "uncorrectable NVLink error",
    "cudaErrorContextIsDestroyed": "context is destroyed",
    "cudaErrorCudartUnloading": "driver shutting down",
    "cudaErrorNoDevice": "no CUDA-capable device is detected",
}
"""Codes that no call survives, and the runtime's words for them."""


def verdict_of(error: BaseException) -> DeviceVerdict:
    """What an exception, or any that it came from, says about the device."""
    verdicts = {_verdict_of_one(link) for link in linked_errors(error)}
    for verdict in (DeviceVerdict.LOST, DeviceVerdict.UNCLEAR):
        if verdict in verdicts:
            return verdict
    return DeviceVerdict.FINE


def _verdict_of_one(error: BaseException) -> DeviceVerdict:
    if not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError):
        return DeviceVerdict.FINE
    text = str(error)
    is_of_device = _ACCELERATOR_ERROR is not None and isinstance(error, _ACCELERATOR_ERROR)
    if not is_of_device and _SPEAKERS.search(text) is None:
        return DeviceVerdict.FINE
    is_fatal = any(code in text or words in text for code, words in _FATAL.items())
    return DeviceVerdict.LOST if is_fatal else DeviceVerdict.UNCLEAR
