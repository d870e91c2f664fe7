"""A build of some members of the larger testbed with next to no training."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from hilora.errors import Conflict
from hilora_lab.testbed.adapter_training import AdapterRecipe
from hilora_lab.testbed.base_training import BaseRecipe
from hilora_lab.testbed.folder import read_testbed
from hilora_lab.testbed.large_build import LargeRecipe, build_large_testbed

NAMES = ("double-digits", "rotate-letters", "rotate-then-next-capitals", "rotate-letters-copied", "double-digits-huge")
QUESTIONS = ("swap-then-next-digits", "middle-letters")
TINY = LargeRecipe(
    base=BaseRecipe(hidden_size=16, intermediate_size=16, num_layers=1, num_heads=2, num_steps=2, batch_size=4),
    adapter=AdapterRecipe(lora_rank=2, lora_alpha=4, num_steps=2, batch_size=4),
    only=(*NAMES, *QUESTIONS),
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("lab") / "large"
    return out, build_large_testbed(out, TINY)


def test_it_is_a_testbed(built):
    out, scores = built
    testbed = read_testbed(out)

    assert set(testbed.adapter_names) == set(NAMES)
    assert set(testbed.unseen_task_names) == set(QUESTIONS)
    assert {score.task for score in scores} == {*NAMES[:3], *QUESTIONS}


def test_lines_say_their_kind_and_wording(built):
    lines = read_testbed(built[0]).lines_of("swap-then-next-digits", "test")

    assert {line.kind for line in lines} == {"two_skill_new"}
    assert {line.wording for line in lines} == {"known", "held_out"}


def test_the_huge_one_is_huge_in_its_weights_alone(built):
    folder = built[0] / "adapters"
    config = json.loads((folder / "double-digits-huge" / "adapter_config.json").read_text())
    norms = {
        name: max(
            float(torch.linalg.vector_norm(weight.float()))
            for key, weight in load_file(folder / name / "adapter_model.safetensors").items()
            if ".lora_B." in key
        )
        for name in ("double-digits", "double-digits-huge")
    }

    assert config["lora_alpha"] == 4
    assert norms["double-digits-huge"] > 10 * norms["double-digits"]


def test_adapters_do_not_start_alike(built):
    folder = built[0] / "adapters"
    first, second = (
        next(w for key, w in load_file(folder / name / "adapter_model.safetensors").items() if ".lora_A." in key)
        for name in ("rotate-letters", "rotate-letters-copied")
    )

    assert not torch.allclose(first.float(), second.float(), atol=1e-3)


def test_report_and_page_tell_the_kinds(built):
    out, _ = built
    report = json.loads((out / "report.json").read_text())
    page = (out / "README.md").read_text()

    assert report["kinds"]["rotate-letters-copied"] == "adversarial"
    assert "rotate-then-next" in report["base_skills"]
    assert "| two_skill_new | 1 |" in page
    assert str(out.parent) not in page


def test_an_existing_folder_is_kept(built):
    with pytest.raises(Conflict):
        build_large_testbed(built[0], TINY)
