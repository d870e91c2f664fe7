from __future__ import annotations

import json

import pytest

from hilora.errors import InvalidInput
from hilora_lab.training.lorahub import LearnedWeights, write_weights
from services.router.infra.weights_file import read_weights


def test_what_is_learned_is_read(tmp_path):
    path = tmp_path / "weights.json"
    write_weights(LearnedWeights(weights={"a": -0.25, "b": 1.5}, loss=0.1, base_loss=0.2), path)
    assert read_weights(path) == {"a": -0.25, "b": 1.5}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        json.dumps({"format": "hilora-weights", "version": 2, "weights": {}}),
        json.dumps({"format": "hilora-weights", "version": 1, "weights": [1.0]}),
        *(
            json.dumps({"format": "hilora-weights", "version": 1, "weights": {"a": factor}})
            for factor in (None, True, "1", float("nan"), 1e9)
        ),
        json.dumps({"format": "hilora-weights", "version": 1, "weights": {str(place): 1.0 for place in range(65)}}),
    ],
)
def test_anything_else_is_refused(tmp_path, content):
    path = tmp_path / "weights.json"
    path.write_text(content)
    with pytest.raises(InvalidInput) as raised:
        read_weights(path)
    assert raised.value.code == "invalid_weights_file"


def test_so_is_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_weights(tmp_path / "absent.json")
