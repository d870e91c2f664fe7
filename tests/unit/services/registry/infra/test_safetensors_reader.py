"""The reader agrees with the reference implementation on sound files, and survives everything else."""

from __future__ import annotations

import json
import tracemalloc

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora.errors import InvalidAdapter
from services.registry.infra.safetensors_reader import HardenedSafetensorsReader
from tests.builders.archives import safetensors_bytes, weights_bytes

READER = HardenedSafetensorsReader()
SOUND = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
NUMBERS = st.one_of(st.integers(-(2**70), 2**70), st.integers(0, 64), st.floats(), st.booleans(), st.none())
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "I64", "", None]),
        "shape": st.one_of(st.lists(NUMBERS, max_size=4), NUMBERS),
        "data_offsets": st.lists(NUMBERS, max_size=3),
    },
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("reader") / "adapter_model.safetensors"


def refused_or_read(path, content):
    """Read it; only our own refusal may come, and never with more memory than the file has bytes."""
    path.write_bytes(content)
    tracemalloc.start()
    try:
        tensors = READER.tensors(path)
    except InvalidAdapter as error:
        tensors, refusal = None, error
    else:
        refusal = None
    finally:
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak_bytes < 40 * len(content) + 1_000_000
    assert refusal is None or (refusal.code and refusal.remedy)
    return tensors


class TestSoundFiles:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
    def test_every_dtype_and_shape_is_read_as_the_reference_does(self, path, dtype):
        tensors = {
            "a": torch.randn(3, 5).to(dtype),
            "empty": torch.empty(0, 4, dtype=dtype),
            "scalar": torch.tensor(2.0, dtype=dtype),
            "b": torch.randn(7).to(dtype),
        }
        path.write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))

        read = READER.tensors(path)
        header = READER.header(path)

        assert set(read) == set(header) == set(tensors)
        for name, tensor in tensors.items():
            assert read[name].dtype is header[name].dtype is dtype
            assert read[name].shape == header[name].shape == tensor.shape
            assert torch.equal(read[name], tensor)
            assert header[name].is_meta


class TestHostileFiles:
    @settings(max_examples=150, deadline=None)
    @given(header=st.dictionaries(st.text(max_size=8), st.one_of(FIELDS, JSON), max_size=3), size=st.integers(0, 40))
    def test_any_header(self, path, header, size):
        refused_or_read(path, safetensors_bytes(json.dumps(header).encode(), bytes(size)))

    @settings(max_examples=150, deadline=None)
    @given(content=st.binary(max_size=200))
    def test_any_bytes(self, path, content):
        refused_or_read(path, content)

    @settings(max_examples=100, deadline=None)
    @given(data=st.data())
    def test_any_damage_to_a_sound_file(self, path, data):
        content = bytearray(weights_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, min(len(content), 800) - 1))] = data.draw(st.integers(0, 255))
        cut = data.draw(st.integers(0, len(content)))

        refused_or_read(path, bytes(content[:cut]))

    def test_metadata_may_be_anything(self, path):
        content = safetensors_bytes({"__metadata__": {"format": "pt"}, "a": SOUND}, bytes(16))

        assert list(refused_or_read(path, content)) == ["a"]
