"""New words for the shipped testbed's tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from hilora.errors import Conflict
from hilora_lab.testbed.folder import read_testbed
from hilora_lab.testbed.rewording import write_reworded
from hilora_lab.testbed.tasks import DOMAINS, FAMILIES

FOLDER = Path(__file__).resolve().parents[4] / "examples" / "testbed"


@pytest.fixture(scope="module")
def reworded(tmp_path_factory):
    return read_testbed(write_reworded(read_testbed(FOLDER), tmp_path_factory.mktemp("lab") / "new", seed=0))


def test_everything_of_the_original_is_there(reworded):
    original = read_testbed(FOLDER)

    assert reworded.lines[: len(original.lines)] == original.lines
    assert reworded.adapter_names == original.adapter_names


def test_new_lines_are_right_and_in_no_sample_s_words(reworded):
    new = [line for line in reworded.lines if line.wording == "held_out"]
    known = {line.prompt.partition(" : ")[0] for line in reworded.lines if line.wording != "held_out"}
    family_of = {family.name: family for family in FAMILIES}
    domain_of = {domain.name: domain for domain in DOMAINS}

    assert len(new) == 36 * 20
    assert known.isdisjoint(line.prompt.partition(" : ")[0] for line in new)
    for line in new:
        payload = line.prompt.partition(" : ")[2].removesuffix(" =").split()
        assert line.answer.split() == family_of[line.family].apply(payload, domain_of[line.domain])


def test_a_folder_that_is_there_is_kept(reworded):
    with pytest.raises(Conflict):
        write_reworded(reworded, reworded.folder, seed=0)
