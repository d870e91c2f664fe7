from __future__ import annotations

import json
import shlex

import pytest

from hilora.errors import InvalidInput
from hilora_cli.demo import demo, invitation


@pytest.fixture
def testbed(tmp_path):
    (tmp_path / "adapters" / "sort").mkdir(parents=True)
    lines = [
        {"task": "unseen", "split": "test", "prompt": "nobody can", "answer": "x"},
        {"task": "sort", "split": "fit", "prompt": "a fit line", "answer": "x"},
        {"task": "sort", "split": "test", "prompt": "it's : b a =", "answer": "a b"},
    ]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


class TestInvitation:
    def test_its_line_can_be_pasted_into_a_shell(self, testbed):
        text = invitation("http://127.0.0.1:1", "127.0.0.1:2", testbed)

        (line,) = (line for line in text.splitlines() if line.startswith("curl "))
        words = shlex.split(line)
        assert "http://127.0.0.1:1/v1/completions" in words
        assert json.loads(words[-1])["prompt"] == "it's : b a ="
        assert json.loads(words[-1])["model"] == "auto"

    def test_it_says_what_should_come_back(self, testbed):
        assert "The adapter sort should answer: a b" in invitation("http://127.0.0.1:1", "127.0.0.1:2", testbed)


class TestDemo:
    def test_without_a_testbed_it_says_how_to_get_one(self, tmp_path):
        with pytest.raises(InvalidInput, match=r"tasks\.jsonl") as refusal:
            demo(testbed=tmp_path)

        assert "build-testbed" in refusal.value.remedy
