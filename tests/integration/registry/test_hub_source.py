"""The hub source against a server that speaks the hub's protocol, through the real client library.

Each case runs in a process of its own, because the library reads HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders.archives import CONFIG, SAMPLES, WEIGHTS, adapter_files
from tests.fakes.hub_server import TOKEN, hub_server

ROOT = Path(__file__).resolve().parents[3]
MAX_BYTES = 100_000
DRIVER = """
import json, sys
from pathlib import Path
from hilora.errors import HiloraError
from services.registry.infra.hub_source import HubSource
source, results = HubSource(is_allowed=True, max_bytes=int(sys.argv[1])), []
for number, reference in enumerate(sys.argv[3:]):
    folder = Path(sys.argv[2]) / str(number)
    folder.mkdir()
    try:
        results.append({"source": source.fetch(reference, folder)})
    except HiloraError as error:
        results.append({"kind": type(error).__name__, "code": error.code, "remedy": error.remedy})
    results[-1]["files"] = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
print(json.dumps(results))
"""


@pytest.fixture
def hub():
    with hub_server() as hub:
        yield hub


def fetch(hub, folder, *references, **environment):
    folder.mkdir()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(MAX_BYTES), str(folder), *references],
        env={
            **inherited,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder / "home"),
            "NO_PROXY": "127.0.0.1",
            **environment,
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


class TestFetching:
    def test_only_the_files_of_an_adapter_at_one_commit(self, hub, tmp_path):
        extra = {"README.md": b"# card", "evil.py": b"import os", "adapter_model.bin": b"\x80"}
        commit = hub.add("owner/sorter", {**adapter_files(), **extra}, tag="v1")

        by_branch, by_tag, by_commit = fetch(
            hub, tmp_path / "out", "owner/sorter", "owner/sorter@v1", f"owner/sorter@{commit}"
        )

        for result in (by_branch, by_tag, by_commit):
            assert result["source"] == f"owner/sorter@{commit}"
            assert result["files"] == sorted([CONFIG, SAMPLES, WEIGHTS])
        assert (tmp_path / "out" / "0" / WEIGHTS).read_bytes() == adapter_files()[WEIGHTS]
        assert not any("evil.py" in request or "README" in request for request in hub.requests)

    def test_what_cannot_be_fetched_says_why(self, hub, tmp_path):
        hub.add("owner/gated", adapter_files(), is_gated=True)
        hub.add("owner/private", adapter_files(), is_private=True)
        hub.add("owner/sorter", adapter_files())
        hub.add("owner/pickle", {CONFIG: b"{}", "adapter_model.bin": b"\x80"})
        hub.add("owner/base", {"config.json": b"{}"})
        hub.add("owner/large", {**adapter_files(), WEIGHTS: bytes(MAX_BYTES + 1)})
        cases = {
            "owner/nobody": "hub_not_found",
            "owner/private": "hub_not_found",
            "owner/gated": "hub_gated",
            "owner/sorter@v9": "hub_revision_not_found",
            "owner/pickle": "pickle_refused",
            "owner/base": "not_an_adapter",
            "owner/large": "upload_too_large",
            "not a repo": "invalid_hub_reference",
        }

        results = fetch(hub, tmp_path / "out", *cases)

        assert [result["code"] for result in results] == list(cases.values())
        assert all(result["remedy"] for result in results)
        assert all(result["files"] == [] for result in results)
        assert not any("owner/large/resolve" in request for request in hub.requests), "refused by size before download"

    def test_a_token_opens_what_is_private_or_gated(self, hub, tmp_path):
        hub.add("owner/gated", adapter_files(), is_gated=True)
        hub.add("owner/private", adapter_files(), is_private=True)

        results = fetch(hub, tmp_path / "out", "owner/gated", "owner/private", HF_TOKEN=TOKEN)

        assert all("source" in result for result in results)

    def test_a_hub_that_is_away_is_worth_another_attempt(self, hub, tmp_path):
        hub.is_broken = True

        (result,) = fetch(hub, tmp_path / "out", "owner/sorter")

        assert (result["kind"], result["code"]) == ("Unavailable", "hub_unavailable")

    def test_offline_mode_is_named(self, hub, tmp_path):
        hub.add("owner/sorter", adapter_files())

        (result,) = fetch(hub, tmp_path / "out", "owner/sorter", HF_HUB_OFFLINE="1")

        assert (result["kind"], result["code"]) == ("InvalidInput", "hub_offline")
        assert hub.requests == []
