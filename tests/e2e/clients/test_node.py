"""OpenAI's client for Node. Needs node and npm, and a registry that npm can install the client from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.builders.patience import patient
from tests.builders.speller import SHIFT

CLIENT = "openai@6.49.0"
_SCRIPT = Path(__file__).with_name("client.mjs")


@pytest.fixture(scope="module")
def seen(speller, tmp_path_factory):
    """What the script saw."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("NOT TESTED: OpenAI's client for Node, because node or npm is not installed")
    folder = tmp_path_factory.mktemp("node")
    install = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), CLIENT]
    installed = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=patient(120), check=False)
    if installed.returncode != 0:
        pytest.skip(f"NOT TESTED: OpenAI's client for Node, because npm cannot install it: {installed.stderr[-500:]}")
    script = shutil.copy(_SCRIPT, folder)
    env = {**os.environ, "BASE_URL": f"{speller.url}/v1", "TOOL": json.dumps(SHIFT)}
    ran = subprocess.run([node, script], env=env, capture_output=True, text=True, timeout=patient(120), check=False)
    assert ran.returncode == 0, ran.stderr[-4000:]
    return json.loads(ran.stdout)


class TestNode:
    def test_it_lists_the_models(self, seen):
        assert seen["models"][0] == "auto"

    def test_a_stream_says_what_an_answer_says_and_ends_with_usage(self, seen):
        assert seen["streamed"] == seen["whole"]
        assert seen["usage"]["completion_tokens"] <= 20

    def test_its_helper_puts_a_streamed_call_together(self, seen):
        assert seen["call"]["name"] == "shift"
        assert json.loads(seen["call"]["arguments"])["by"] in {1, 2, 3}

    def test_an_answer_is_an_instance_of_its_schema(self, seen):
        assert isinstance(seen["formed"]["upper"], bool)

    def test_it_reads_embeddings(self, seen):
        assert seen["dimensions"] > 1

    def test_errors_are_of_their_class(self, seen):
        error = seen["error"]
        assert (error["kind"], error["status"], error["code"]) == ("NotFoundError", 404, "model_not_found")
        assert error["requestID"].startswith("req-")

    def test_a_stream_that_it_aborts_ends(self, seen):
        assert 3 <= seen["pieces"] < 100
