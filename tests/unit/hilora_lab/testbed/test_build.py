"""A build of the smallest kind: what it writes, that it can be interrupted, that it does not overwrite."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from hilora.errors import Conflict, InvalidInput
from hilora_lab.testbed import build
from hilora_lab.testbed.adapter_training import AdapterRecipe
from hilora_lab.testbed.base_training import BaseRecipe
from hilora_lab.testbed.build import BuildRecipe, build_testbed
from hilora_lab.testbed.folder import read_testbed

TINY = BuildRecipe(
    families=("copy",),
    base=BaseRecipe(hidden_size=16, intermediate_size=16, num_layers=1, num_heads=2, num_steps=2, batch_size=4),
    adapter=AdapterRecipe(lora_rank=2, lora_alpha=4, num_steps=2, batch_size=4),
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("lab") / "testbed"
    stages = []
    scores = build_testbed(
        out, TINY, on_progress=lambda stage, done, total, detail: stages.append((stage, done, total))
    )
    return out, scores, stages


class TestBuild:
    def test_it_writes_a_valid_testbed(self, built):
        out, scores, _ = built
        testbed = read_testbed(out)

        assert testbed.adapter_names == ("copy-letters", "copy-digits", "copy-capitals")
        assert len(testbed.unseen_task_names) == 6
        assert [score.task for score in scores] == list(testbed.task_names)
        assert {path.name for path in out.iterdir()} == {"base", "adapters", "tasks.jsonl", "report.json", "README.md"}

    def test_no_file_names_the_machine(self, built):
        out, _, _ = built

        for path in out.rglob("*.json"):
            assert str(out.parent) not in path.read_text()
        config = json.loads((out / "adapters" / "copy-digits" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "hilora-testbed-base"

    def test_every_stage_runs_to_its_end(self, built):
        _, _, stages = built

        ends = {stage: (done, total) for stage, done, total in stages}

        assert ends == {"base": (2, 2), "adapters": (3, 3), "evaluation": (9, 9)}

    def test_the_report_says_how_it_was_made(self, built):
        out, _, _ = built
        report = json.loads((out / "report.json").read_text())

        assert report["recipe"]["seed"] == 0
        assert report["recipe"]["base"]["num_steps"] == 2
        assert report["size_bytes"]["base"] > 0
        assert set(report["versions"]) == {"python", "torch", "transformers", "peft", "tokenizers"}

    def test_the_page_tells_what_the_report_tells(self, built):
        out, scores, _ = built
        page = (out / "README.md").read_text()

        assert scores[0].family == "copy"
        assert "| copy | " in page
        assert "--seed 0" in page
        assert "ends and reverse-next" in page
        assert read_testbed(out).lines[0].prompt in page

    def test_the_same_seed_builds_the_same_weights(self, built, tmp_path):
        out, _, _ = built
        build_testbed(tmp_path / "again", TINY)

        for name in ("base/model.safetensors", "adapters/copy-digits/adapter_model.safetensors", "tasks.jsonl"):
            assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()

    def test_an_existing_folder_is_kept(self, built):
        out, _, _ = built

        with pytest.raises(Conflict) as caught:
            build_testbed(out, TINY)

        assert caught.value.code == "testbed_exists"
        assert read_testbed(out).lines

    def test_unknown_families_are_refused_before_anything_is_written(self, tmp_path):
        with pytest.raises(InvalidInput):
            build_testbed(tmp_path / "never", replace(TINY, families=("singing",)))

        assert list(tmp_path.iterdir()) == []


class TestInterruption:
    def test_finished_pieces_are_not_trained_again(self, tmp_path, monkeypatch):
        trained = []
        real = build.train_adapter

        def fails_at_the_second(base, tokenizer, task, *rest, **options):
            if len(trained) == 1:
                raise KeyboardInterrupt
            trained.append(task.name)
            return real(base, tokenizer, task, *rest, **options)

        monkeypatch.setattr(build, "train_adapter", fails_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            build_testbed(tmp_path / "testbed", TINY)
        assert not (tmp_path / "testbed").exists()

        def counts(base, tokenizer, task, *rest, **options):
            trained.append(task.name)
            return real(base, tokenizer, task, *rest, **options)

        monkeypatch.setattr(build, "train_adapter", counts)
        monkeypatch.setattr(build, "train_base", lambda *_, **__: pytest.fail("the base was finished"))
        build_testbed(tmp_path / "testbed", TINY)

        assert trained == ["copy-letters", "copy-digits", "copy-capitals"]
        assert [path.name for path in tmp_path.iterdir()] == ["testbed"]

    def test_leftovers_of_another_recipe_are_dropped(self, built, tmp_path):
        out, _, _ = built
        leftover = tmp_path / "testbed.building"
        shutil.copytree(out, leftover)
        (leftover / "recipe.json").write_text("{}")

        build_testbed(tmp_path / "testbed", replace(TINY, seed=1))

        ours, theirs = ((folder / "base" / "model.safetensors").read_bytes() for folder in (tmp_path / "testbed", out))
        assert ours != theirs
