"""The public pools' recipes and the reading of their data."""

from __future__ import annotations

import json

import pytest

from hilora.errors import InvalidInput
from hilora_lab.accuracy.flan import NUM_FIT, RECIPES, FlanRow, _lines, read_rows, safe_name


class TestRecipes:
    def test_the_llama_pool_has_its_48_tasks_in_10_clusters(self):
        recipe = RECIPES["llama2-7b"]

        assert len(recipe.cluster_of) == 48
        assert len(recipe.clusters) == 10
        assert recipe.adapter.format(task="rte") == "Styxxxx/llama2_7b_lora-rte"

    def test_names_are_fit_for_adapters(self):
        assert safe_name("super_glue/wic:1.0") == "super_glue-wic-1.0"


class TestRows:
    @pytest.mark.parametrize("as_list", [True, False])
    def test_both_forms_of_json(self, tmp_path, as_list):
        records = [{"task": "rte_10templates", "domain": "nli", "inputs": " a\nb ", "targets": "yes"}] * 2
        text = json.dumps(records) if as_list else "\n".join(map(json.dumps, records))
        (tmp_path / "rows").write_text(text)

        rows = read_rows(tmp_path / "rows")

        assert rows == [FlanRow(task="rte", cluster="nli", inputs="a\nb", targets="yes")] * 2

    @pytest.mark.parametrize("text", ["{", '{"task": "rte"}', "[1]"])
    def test_other_files_are_refused(self, tmp_path, text):
        (tmp_path / "rows").write_text(text)

        with pytest.raises(InvalidInput) as caught:
            read_rows(tmp_path / "rows")

        assert caught.value.code == "invalid_flan_data"

    def test_rows_without_splits_are_divided_and_repeated_prompts_dropped(self):
        rows = [FlanRow(task="rte", cluster="", inputs=f"text {idx}", targets="no") for idx in range(40)]

        lines = _lines(RECIPES["llama2-7b"], [*rows, *rows])

        counts = {split: sum(line.split == split for line in lines) for split in ("fit", "dev", "test")}
        assert counts == {"fit": NUM_FIT, "dev": 8, "test": 12}
        assert {line.family for line in lines} == {"nli"}
