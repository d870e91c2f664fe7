"""From the files that came in to those that are checked."""

from __future__ import annotations

import contextlib
import json

import pytest
import safetensors.torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora.errors import InvalidAdapter
from services.registry.adapter_files import MAX_CARD_BYTES
from services.registry.infra.assembly import assemble
from services.registry.infra.safetensors_reader import HardenedSafetensorsReader
from tests.builders.archives import CARD, CONFIG, WEIGHTS, WEIGHTS_INDEX, sharded_weights, weights_bytes

FIRST = "adapter_model-00001-of-00002.safetensors"
SECOND = "adapter_model-00002-of-00002.safetensors"


def lay(folder, files):
    for name, data in files.items():
        (folder / name).write_bytes(data)


def index_bytes(**weight_map):
    return json.dumps({"weight_map": weight_map}).encode()


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


class TestShards:
    @pytest.mark.parametrize("num_shards", [1, 2, 5])
    def test_shards_become_the_file_they_were_cut_from(self, tmp_path, num_shards):
        whole = weights_bytes()
        lay(tmp_path, sharded_weights(whole, num_shards=num_shards))

        assemble(tmp_path)

        assert names_in(tmp_path) == [WEIGHTS]
        joined = HardenedSafetensorsReader().tensors(tmp_path / WEIGHTS)
        expected = safetensors.torch.load(whole)
        assert joined.keys() == expected.keys()
        assert all(joined[name].equal(tensor) for name, tensor in expected.items())

    def test_repeating_it_changes_nothing(self, tmp_path):
        lay(tmp_path, sharded_weights(weights_bytes(), num_shards=2))
        assemble(tmp_path)
        before = (tmp_path / WEIGHTS).read_bytes()

        assemble(tmp_path)

        assert (tmp_path / WEIGHTS).read_bytes() == before

    def test_a_join_that_was_killed_is_done_again(self, tmp_path):
        lay(tmp_path, {**sharded_weights(weights_bytes(), num_shards=2), ".joined": b"half"})

        assemble(tmp_path)

        assert names_in(tmp_path) == [WEIGHTS]

    def test_one_file_of_weights_wins(self, tmp_path):
        lay(tmp_path, {**sharded_weights(weights_bytes(seed=1), num_shards=2), WEIGHTS: weights_bytes()})

        assemble(tmp_path)

        assert names_in(tmp_path) == [WEIGHTS]
        assert (tmp_path / WEIGHTS).read_bytes() == weights_bytes()

    def test_files_without_weights_are_left_for_the_validation(self, tmp_path):
        lay(tmp_path, {CONFIG: b"{}"})

        assemble(tmp_path)

        assert names_in(tmp_path) == [CONFIG]

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({WEIGHTS_INDEX: None}, "missing_shard_index"),
            ({FIRST: None}, "missing_shard"),
            ({WEIGHTS_INDEX: b""}, "invalid_shard_index"),
            ({WEIGHTS_INDEX: b"[" * 200_000}, "invalid_shard_index"),
            ({WEIGHTS_INDEX: b"[]"}, "invalid_shard_index"),
            ({WEIGHTS_INDEX: b'{"weight_map": {}}'}, "invalid_shard_index"),
            ({WEIGHTS_INDEX: b'{"weight_map": {"a": 1}}'}, "invalid_shard_index"),
            ({WEIGHTS_INDEX: index_bytes(a="../../etc/passwd")}, "invalid_shard_index"),
            ({WEIGHTS_INDEX: index_bytes(a=FIRST)}, "invalid_shard_index"),
            ({WEIGHTS_INDEX: index_bytes(a="adapter_model-00009-of-00009.safetensors")}, "missing_shard"),
            ({SECOND: b""}, "truncated_header"),
            ({SECOND: b"\xff" * 100}, "header_too_large"),
        ],
    )
    def test_shards_that_do_not_fit_are_refused(self, tmp_path, changes, code):
        files = {**sharded_weights(weights_bytes(), num_shards=2), **changes}
        lay(tmp_path, {name: data for name, data in files.items() if data is not None})

        with pytest.raises(InvalidAdapter) as refusal:
            assemble(tmp_path)

        assert refusal.value.code == code
        assert refusal.value.remedy
        assert not (tmp_path / WEIGHTS).exists()

    def test_a_tensor_in_two_shards_is_refused(self, tmp_path):
        files = sharded_weights(weights_bytes(), num_shards=2)
        lay(tmp_path, {**files, SECOND: files[FIRST]})

        with pytest.raises(InvalidAdapter) as refusal:
            assemble(tmp_path)

        assert refusal.value.code == "tensor_twice"

    @settings(max_examples=200, deadline=None)
    @given(place=st.integers(0, 10**6), value=st.integers(0, 255), which=st.sampled_from([FIRST, WEIGHTS_INDEX]))
    def test_a_changed_byte_is_refused_or_harmless(self, tmp_path_factory, place, value, which):
        folder = tmp_path_factory.mktemp("shards")
        files = sharded_weights(weights_bytes(), num_shards=2)
        data = bytearray(files[which])
        data[place % min(len(data), 400)] = value
        lay(folder, {**files, which: bytes(data)})

        with contextlib.suppress(InvalidAdapter):
            assemble(folder)
            HardenedSafetensorsReader().header(folder / WEIGHTS)
            return
        assert not (folder / WEIGHTS).exists()


class TestCard:
    def test_a_text_stays(self, tmp_path):
        lay(tmp_path, {CARD: "# Zwölf Boxkämpfer".encode()})

        assemble(tmp_path)

        assert names_in(tmp_path) == [CARD]

    @pytest.mark.parametrize("card", [b"\xff\xfe", b"a\0b", b"x" * (MAX_CARD_BYTES + 1)], ids=["bytes", "nul", "long"])
    def test_what_is_no_text_is_dropped_and_nothing_is_refused(self, tmp_path, card):
        lay(tmp_path, {CARD: card})

        assemble(tmp_path)

        assert names_in(tmp_path) == []
