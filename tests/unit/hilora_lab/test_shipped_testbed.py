"""Promises of the pool in `examples/testbed`."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from hilora_lab.testbed.adapter_pool import load_pool
from hilora_lab.testbed.folder import folder_size_bytes, read_testbed
from hilora_lab.testbed.tasks import DOMAINS, FAMILIES, TAUGHT_FAMILIES, UNSEEN_FAMILIES

FOLDER = Path(__file__).resolve().parents[3] / "examples" / "testbed"
FAMILY_BY_NAME = {family.name: family for family in FAMILIES}
DOMAIN_BY_NAME = {domain.name: domain for domain in DOMAINS}


@pytest.fixture(scope="module")
def testbed():
    return read_testbed(FOLDER)


@pytest.fixture(scope="module")
def pool(testbed):
    return load_pool(testbed)


class TestFolder:
    def test_it_stays_small(self):
        assert folder_size_bytes(FOLDER) <= 16 * 2**20
        assert max(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 2 * 2**20

    def test_every_taught_task_has_an_adapter_and_no_unseen_one_has(self, testbed):
        assert {testbed.family_of(name) for name in testbed.adapter_names} == {f.name for f in TAUGHT_FAMILIES}
        assert {testbed.family_of(name) for name in testbed.unseen_task_names} == {f.name for f in UNSEEN_FAMILIES}
        assert len(testbed.adapter_names) == len(TAUGHT_FAMILIES) * len(DOMAINS)
        assert {path.name for path in (FOLDER / "adapters").iterdir()} == set(testbed.adapter_names)

    def test_splits_have_their_sizes(self, testbed):
        for name in testbed.task_names:
            sizes = [len(testbed.lines_of(name, split)) for split in ("fit", "dev", "test")]
            assert sizes == ([20, 16, 24] if name in testbed.adapter_names else [0, 16, 24])

    def test_no_prompt_is_in_two_splits(self, testbed):
        prompts = [line.prompt for line in testbed.lines]

        assert len(set(prompts)) == len(prompts)

    def test_every_answer_is_right(self, testbed):
        for line in testbed.lines:
            payload = line.prompt.split(" : ")[1].removesuffix(" =").split()
            expected = FAMILY_BY_NAME[line.family].apply(payload, DOMAIN_BY_NAME[line.domain])
            assert line.answer.split() == expected

    def test_configs_name_the_base_neutrally(self, testbed):
        for name in testbed.adapter_names:
            config = json.loads((testbed.adapter_folder(name) / "adapter_config.json").read_text())
            assert config["base_model_name_or_path"] == "hilora-testbed-base"

    def test_the_report_meets_the_promise(self):
        means = json.loads((FOLDER / "report.json").read_text())["exact_match"]

        assert means["own_adapter"] >= 0.95
        assert means["base"] <= 0.05


class TestModels:
    def test_the_own_adapter_answers_and_the_base_does_not(self, testbed, pool):
        names = testbed.adapter_names[::5]

        own = [pool.exact_match(name, testbed.lines_of(name, "test")) for name in names]
        base = [pool.exact_match(None, testbed.lines_of(name, "test")) for name in names]

        assert math.fsum(own) / len(own) >= 0.9
        assert math.fsum(base) / len(base) <= 0.15

    def test_greedy_generation_gives_the_answer_and_stops(self, testbed, pool):
        line = testbed.lines_of("rotate-digits", "test")[0]
        inputs = pool.tokenizer(line.prompt, return_tensors="pt")

        with pool.active("rotate-digits") as model:
            output = model.generate(**inputs, max_new_tokens=24)

        new_ids = output[0, inputs["input_ids"].shape[1] :]
        assert pool.tokenizer.decode(new_ids, skip_special_tokens=True) == line.answer
        assert new_ids[-1].item() == pool.tokenizer.eos_token_id
