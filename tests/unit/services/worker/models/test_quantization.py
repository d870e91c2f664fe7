"""Names of quantisations; what a quantised base computes is in the contract with PEFT."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from hilora.errors import InvalidInput
from services.worker.models.quantization import QUANTIZATIONS, quantization_config_of
from services.worker.settings import WorkerSettings


def _config_of(name: str | None):
    return quantization_config_of(name, compute_dtype=torch.bfloat16)


def test_none_is_none() -> None:
    assert _config_of(None) is None


def test_an_unknown_name() -> None:
    with pytest.raises(InvalidInput) as caught:
        _config_of("int3")
    assert caught.value.code == "invalid_quantization"
    assert all(name in caught.value.remedy for name in QUANTIZATIONS)


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name))
    with pytest.raises(InvalidInput) as caught:
        _config_of(QUANTIZATIONS[0])
    assert caught.value.code == "quantization_not_installed"


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_four_bits_compute_in_the_model_s_type() -> None:
    assert _config_of("bitsandbytes-nf4").bnb_4bit_compute_dtype == torch.bfloat16
    assert _config_of("bitsandbytes-int8").load_in_8bit


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_an_operator_can_ask_for_each(name: str) -> None:
    assert WorkerSettings(base_model="x", quantization=name).quantization == name
