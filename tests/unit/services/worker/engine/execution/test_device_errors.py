"""Which errors say that the device is lost."""

from __future__ import annotations

import pytest
import torch

from hilora.errors import GenerationFailed, Unavailable
from services.worker.engine.execution.device_errors import DeviceVerdict, verdict_of
from services.worker.engine.execution.device_health import DeviceHealth, device_lost, probe_of

_ADVICE = "\nCUDA kernel errors might be asynchronously reported at some other API call.\n"


class Refusal(getattr(torch, "AcceleratorError", RuntimeError)):
    """What torch raises when the runtime refuses a call."""


class TestVerdict:
    @pytest.mark.parametrize("kind", [RuntimeError, Refusal])
    @pytest.mark.parametrize(
        "text",
        [
            "CUDA error: an illegal memory access was encountered",
            "CUDA error: device-side assert triggered",
            "CUDA error: unspecified launch failure",
            "CUDA error: misaligned address",
            "CUDA error: uncorrectable ECC error encountered",
            "CUDA driver error: an illegal instruction was encountered",
            "HIP error: an illegal memory access was encountered",
            "Triton Error [CUDA]: an illegal memory access was encountered",
            "CUDA error: 700 (see cudaErrorIllegalAddress in the documentation)",
        ],
    )
    def test_what_no_call_survives(self, kind, text) -> None:
        assert verdict_of(kind(text + _ADVICE)) is DeviceVerdict.LOST

    @pytest.mark.parametrize(
        "error",
        [
            ValueError("CUDA error: device-side assert triggered"),
            RuntimeError("an assertion of the model's own: device-side assert triggered"),
            RuntimeError("The size of tensor a (3) must match the size of tensor b (4) on device cuda:0"),
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            GenerationFailed("CUDA error: device-side assert triggered"),
        ],
    )
    def test_what_says_nothing_of_the_device(self, error) -> None:
        assert verdict_of(error) is DeviceVerdict.FINE

    @pytest.mark.parametrize(
        "error",
        [
            RuntimeError("CUDA error: out of memory"),
            RuntimeError("CUDA error: operation not permitted when stream is capturing"),
            RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`"),
            RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
            Refusal("something that is not known yet"),
        ],
    )
    def test_what_only_the_device_can_tell(self, error) -> None:
        assert verdict_of(error) is DeviceVerdict.UNCLEAR

    def test_an_error_says_what_it_came_from(self) -> None:
        inner = RuntimeError("CUDA error: an illegal memory access was encountered")
        outer = GenerationFailed("Loading failed.")
        outer.__cause__, inner.__context__ = inner, outer
        assert verdict_of(outer) is DeviceVerdict.LOST


class TestHealth:
    def _probing(self, outcome: Exception | None) -> tuple[DeviceHealth, list[int]]:
        asked: list[int] = []

        def probe() -> None:
            asked.append(1)
            if outcome is not None:
                raise outcome

        return DeviceHealth(probe), asked

    def test_a_device_that_still_answers_is_not_lost(self) -> None:
        health, asked = self._probing(None)
        assert not health.note(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"))
        assert not health.is_lost and asked

    def test_a_device_that_has_no_room_answers(self) -> None:
        health, _ = self._probing(torch.OutOfMemoryError("CUDA out of memory"))
        assert not health.note(RuntimeError("CUDA error: out of memory"))

    def test_one_that_does_not_is_lost_for_good(self) -> None:
        health, _ = self._probing(RuntimeError("CUDA error: unknown error"))
        assert health.note(RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"))
        assert health.is_lost and health.note(ValueError("whatever"))

    def test_errors_of_others_ask_nothing(self) -> None:
        health, asked = self._probing(None)
        assert not health.note(ValueError("a bug"))
        assert not asked

    def test_work_on_a_lost_device_ends_in_words_for_callers(self) -> None:
        health, _ = self._probing(None)
        with pytest.raises(Unavailable) as caught, health.watching():
            raise RuntimeError("CUDA error: device-side assert triggered")
        assert caught.value.code == device_lost().code == "device_lost"
        with pytest.raises(KeyError), DeviceHealth(probe_of(torch.device("cpu"))).watching():
            raise KeyError("a bug")

    def test_the_probe_of_a_device_that_works(self) -> None:
        probe_of(torch.device("cpu"))()
