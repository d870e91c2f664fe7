"""The registry's checks of an adapter's files, against a base of three layers."""

from __future__ import annotations

from services.registry.infra.safetensors_reader import HardenedSafetensorsReader
from services.registry.validation import AdapterValidator, ValidationLimits
from tests.builders.adapters import MODULE_SHAPES
from tests.fakes.registry_ports import FakeBaseModel

VALIDATOR = AdapterValidator(
    reader=HardenedSafetensorsReader(),
    base=FakeBaseModel(MODULE_SHAPES),
    limits=ValidationLimits(max_lora_rank=16, max_eager_bytes=1 << 30),
)
