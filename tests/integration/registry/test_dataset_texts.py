"""Prompts of a card's data set, from a server that speaks the hub's protocol, through the real client library.

In a process of its own, because the library reads HF_ENDPOINT once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.hub_server import hub_server

ROOT = Path(__file__).resolve().parents[3]
MAX_BYTES = 64 * 1024
DRIVER = """
import asyncio, json, sys
answers, sys.stdout = sys.stdout, sys.stderr  # the log goes elsewhere
from pathlib import Path
from hilora.errors import HiloraError
from services.registry.artifact import ProfileSubject
from services.registry.infra.dataset_texts import DatasetTexts
from services.registry.infra.transfer import FetchLimits
root, max_bytes = sys.argv[1:]
source = DatasetTexts(cache=Path(root), limits=FetchLimits(max_bytes=int(max_bytes), max_seconds=60.0))
for line in sys.stdin:
    card = json.loads(line)
    subject = ProfileSubject(
        adapter_name="a", adapter_id="a@0", lora_rank=8, card=card, is_served=True, catalog_generation=1
    )
    try:
        result = {"texts": asyncio.run(source.texts(subject))}
    except HiloraError as error:
        result = {"kind": type(error).__name__, "code": error.code}
    print(json.dumps(result), file=answers, flush=True)
"""


def rows(*prompts):
    return "".join(json.dumps({"prompt": prompt, "completion": "x"}) + "\n" for prompt in prompts).encode()


def card(*datasets):
    return f"---\ndatasets: {json.dumps(list(datasets))}\n---\n"


@pytest.fixture(scope="module")
def hub():
    with hub_server() as hub:
        yield hub


@pytest.fixture(scope="module")
def driver(hub, tmp_path_factory):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    root = tmp_path_factory.mktemp("datasets")
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(root / "cache"), str(MAX_BYTES)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**environment, "HF_ENDPOINT": hub.url, "HF_HOME": str(root / "home")},
    )

    def ask(text):
        process.stdin.write(json.dumps(text) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield ask
    process.stdin.close()
    process.wait(timeout=30)


@pytest.fixture(autouse=True)
def fresh(hub):
    hub.reset()


class TestDataset:
    def test_training_prompts_of_the_first_named_one(self, hub, driver):
        hub.add("datasets/me/sorting", {"test.jsonl": rows("no"), "train.jsonl": rows("sort b a"), "README.md": b"#"})
        assert driver(card("me/sorting")) == {"texts": ["sort b a"]}
        assert not any("README" in request or "test.jsonl" in request for request in hub.requests)

    def test_one_that_is_missing_or_closed_is_passed_over(self, hub, driver):
        hub.add("datasets/me/closed", {"train.jsonl": rows("secret")}, is_gated=True)
        hub.add("datasets/me/open", {"data.csv": b"question,answer\nwhy?,so\n"})
        assert driver(card("me/missing", "me/closed", "me/open")) == {"texts": ["why?"]}

    def test_a_file_beyond_the_limit_is_never_fetched(self, hub, driver):
        hub.add("datasets/me/large", {"train.jsonl": rows(*(f"text {n} {'x' * 100}" for n in range(1000)))})
        assert driver(card("me/large")) == {"texts": []}
        assert not any("resolve" in request for request in hub.requests)

    def test_other_formats_are_never_fetched(self, hub, driver):
        hub.add("datasets/me/code", {"data.parquet": b"PAR1", "me_code.py": b"raise SystemExit", "x.pkl": b"."})
        assert driver(card("me/code")) == {"texts": []}
        assert not any("resolve" in request for request in hub.requests)

    @pytest.mark.parametrize("name", ["../../etc/passwd", "http://169.254.169.254/x", "a/b/c", "", "-rf", "a b"])
    def test_names_that_are_none_are_not_asked_for(self, hub, driver, name):
        assert driver(card(name)) == {"texts": []}
        assert hub.requests == []

    def test_a_hub_that_is_busy_is_asked_again_later(self, hub, driver):
        hub.status_of_all = 429
        assert driver(card("me/sorting")) == {"kind": "Exhausted", "code": "hub_rate_limited"}
