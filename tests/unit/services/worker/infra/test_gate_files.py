from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from hilora.adapter import adapter_id_of
from hilora.errors import InvalidInput, UnknownAdapter
from hilora.learned_gate import gate_tensors
from hilora.routing_plan import GateRule
from services.worker.infra.gate_files import GateFiles
from tests.builders.gates import make_gate


def _store(folder: Path, content: bytes, name: str = "mine") -> str:
    gate_id = adapter_id_of(name, hashlib.sha256(content).hexdigest())
    (folder / f"{gate_id}.safetensors").write_bytes(content)
    return gate_id


def _content() -> bytes:
    tensors, metadata = gate_tensors(
        make_gate(GateRule.SMORA, ranks={"a@1": {"q": 2}, "b@2": {"q": 3}}, shapes={"q": (5, 4)})
    )
    return save(tensors, metadata=metadata)


class TestFetching:
    def test_a_file_is_found_by_its_hash(self, tmp_path):
        gate_id = _store(tmp_path, _content())
        gate = GateFiles(tmp_path).fetch(gate_id)
        assert gate.rule is GateRule.SMORA
        assert {name: tuple(gate.modules["q"].gates[name].shape) for name in ("a@1", "b@2")} == {
            "a@1": (2, 5),
            "b@2": (3, 5),
        }

    def test_a_file_may_arrive_later(self, tmp_path):
        files = GateFiles(tmp_path / "later")
        content = _content()
        gate_id = adapter_id_of("mine", hashlib.sha256(content).hexdigest())
        with pytest.raises(UnknownAdapter) as caught:
            files.fetch(gate_id)
        assert caught.value.code == "unknown_gate"
        (tmp_path / "later").mkdir()
        _store(tmp_path / "later", content)
        assert files.fetch(gate_id).rule is GateRule.SMORA

    @pytest.mark.parametrize(
        "gate_id", ["", "@", "mine", "../mine@1", "mine@../1", "/etc/passwd@1", "mine@1@2", "m\0@1"]
    )
    def test_ids_that_are_none(self, tmp_path, gate_id):
        _store(tmp_path, _content())
        with pytest.raises(UnknownAdapter):
            GateFiles(tmp_path).fetch(gate_id)

    def test_a_name_cannot_leave_the_folder(self, tmp_path):
        inner = tmp_path / "inner"
        inner.mkdir()
        gate_id = _store(tmp_path, _content())
        with pytest.raises(UnknownAdapter):
            GateFiles(inner).fetch(f"../{gate_id}")


class TestWhatIsInTheFile:
    def _refused(self, folder: Path, gate_id: str) -> str:
        with pytest.raises(InvalidInput) as caught:
            GateFiles(folder).fetch(gate_id)
        assert caught.value.code == "invalid_gate"
        return caught.value.message

    def test_content_that_changed(self, tmp_path):
        gate_id = _store(tmp_path, _content())
        path = tmp_path / f"{gate_id}.safetensors"
        path.write_bytes(path.read_bytes() + b" ")
        assert "its name promises" in self._refused(tmp_path, gate_id)

    @pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff" * 64, _content()[:-3]])
    def test_something_else_than_safetensors(self, tmp_path, content):
        assert "not a safetensors file" in self._refused(tmp_path, _store(tmp_path, content))

    def test_a_file_without_metadata(self, tmp_path):
        assert "metadata" in self._refused(tmp_path, _store(tmp_path, save({"q/gate/a": torch.ones(3)})))
