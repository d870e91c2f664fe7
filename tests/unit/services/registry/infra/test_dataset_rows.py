"""Prompts out of the files of strangers' data sets."""

from __future__ import annotations

import json

import pytest

from services.registry.infra.dataset_rows import prompts_of


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def read(tmp_path, data, suffix=".jsonl"):
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(data)
    return prompts_of(path, suffix=suffix)


class TestFormats:
    @pytest.mark.parametrize("column", ["prompt", "instruction", "question", "input", "text", "Prompt"])
    def test_json_lines(self, tmp_path, column):
        assert read(tmp_path, lines({column: "sort these", "answer": "no"})) == ("sort these",)

    def test_json_list(self, tmp_path):
        assert read(tmp_path, json.dumps([{"question": "why?"}]).encode(), ".json") == ("why?",)

    def test_json_list_below_a_key(self, tmp_path):
        data = {"version": "1", "data": [{"question": "why?"}]}
        assert read(tmp_path, json.dumps(data).encode(), ".json") == ("why?",)

    def test_json_lines_that_are_called_json(self, tmp_path):
        assert set(read(tmp_path, lines({"text": "one"}, {"text": "two"}), ".json")) == {"one", "two"}

    def test_csv(self, tmp_path):
        assert read(tmp_path, b'prompt,answer\n"sort, please",a\n', ".csv") == ("sort, please",)

    def test_the_input_belongs_to_its_instruction(self, tmp_path):
        assert read(tmp_path, lines({"instruction": "sort", "input": "b a", "output": "a b"})) == ("sort\nb a",)


class TestChoice:
    def test_twenty_different_ones_always_the_same(self, tmp_path):
        data = lines(*({"text": f"text {number % 500}"} for number in range(1000)))
        chosen = read(tmp_path, data)
        assert len(set(chosen)) == 20
        assert read(tmp_path, data) == chosen

    def test_a_long_text_is_cut(self, tmp_path):
        assert len(read(tmp_path, lines({"text": "x" * 100_000}))[0]) == 4096


class TestStrangeFiles:
    @pytest.mark.parametrize(
        ("data", "suffix"),
        [
            (b"", ".jsonl"),
            (b"\xff\xfe\x00", ".jsonl"),
            (b"[" * 100_000, ".json"),
            (b"not json", ".json"),
            (b'{"text": 3}\n', ".jsonl"),
            (b'{"text": "  "}\n', ".jsonl"),
            (b'{"completion": "no prompts here"}\n', ".jsonl"),
            (b"3", ".json"),
            (b'prompt\n"' + b"x" * 200_000 + b'"', ".csv"),
            (b"a,b\n1,2,3,4\n", ".csv"),
            (b"\x00\x00", ".csv"),
        ],
    )
    def test_they_have_no_prompts(self, tmp_path, data, suffix):
        assert read(tmp_path, data, suffix) == ()

    def test_half_characters_are_dropped(self, tmp_path):
        assert read(tmp_path, b'{"text": "a\\ud800b"}\n') == ("ab",)
