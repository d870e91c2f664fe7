from __future__ import annotations

import json

import pytest

from hilora.errors import InvalidInput
from hilora_lab.testbed.folder import TaskLine, read_testbed, write_task_lines


def line(**changes):
    values = {
        "task": "copy-letters",
        "family": "copy",
        "domain": "letters",
        "split": "fit",
        "prompt": "copy : a =",
        "answer": "a",
    }
    return TaskLine(**(values | changes))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    adapter = tmp_path / "adapters" / "copy-letters"
    adapter.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (adapter / name).write_bytes(b"")
    lines = [
        line(),
        line(split="test", prompt="copy : b =", answer="b"),
        line(task="ends-letters", family="ends", split="test", prompt="ends : a b c =", answer="a c"),
    ]
    write_task_lines(lines, tmp_path / "tasks.jsonl")
    return tmp_path


def append(folder, text):
    with (folder / "tasks.jsonl").open("a") as stream:
        stream.write(text + "\n")


class TestReading:
    def test_what_is_written_is_read(self, folder):
        testbed = read_testbed(folder)

        assert testbed.task_names == ("copy-letters", "ends-letters")
        assert testbed.adapter_names == ("copy-letters",)
        assert testbed.unseen_task_names == ("ends-letters",)
        assert testbed.lines_of("copy-letters", "fit") == (line(),)
        assert testbed.family_of("ends-letters") == "ends"

    def test_a_task_that_is_not_there(self, folder):
        with pytest.raises(InvalidInput) as caught:
            read_testbed(folder).family_of("sing")

        assert caught.value.code == "unknown_task"


class TestBrokenFolders:
    def refused(self, folder):
        with pytest.raises(InvalidInput) as caught:
            read_testbed(folder)
        assert caught.value.code == "invalid_testbed"
        assert caught.value.remedy
        return str(caught.value)

    def test_no_tasks_file(self, tmp_path):
        assert "tasks.jsonl" in self.refused(tmp_path)

    @pytest.mark.parametrize("text", ["{", "[]", '{"task": "t"}'])
    def test_a_line_that_is_no_record_is_named(self, folder, text):
        append(folder, text)

        assert "tasks.jsonl:4" in self.refused(folder)

    def test_an_unknown_split(self, folder):
        append(
            folder, json.dumps({**json.loads((folder / "tasks.jsonl").read_text().splitlines()[0]), "split": "train"})
        )

        assert "train" in self.refused(folder)

    def test_a_prompt_in_two_splits(self, folder):
        append(folder, json.dumps({**json.loads((folder / "tasks.jsonl").read_text().splitlines()[0]), "split": "dev"}))

        assert "is in fit and in dev" in self.refused(folder)

    def test_an_adapter_without_weights(self, folder):
        (folder / "adapters" / "copy-letters" / "adapter_model.safetensors").unlink()

        assert "adapter_model.safetensors" in self.refused(folder)

    def test_an_unseen_task_with_fit_lines(self, folder):
        append(
            folder, '{"task":"ends-letters","family":"ends","domain":"letters","split":"fit","prompt":"p","answer":"a"}'
        )

        assert "ends-letters" in self.refused(folder)

    def test_an_adapter_without_fit_lines(self, folder):
        write_task_lines([line(split="dev")], folder / "tasks.jsonl")

        assert "no fit lines" in self.refused(folder)

    def test_no_base(self, folder):
        (folder / "base" / "config.json").unlink()

        assert "no model" in self.refused(folder)
