"""The hub source against a server that speaks the hub's protocol, through the real client library.

It runs in processes of their own, because the library reads HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE once: one for all
cases that need no other environment, and one a case for the others.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch

from services.registry.infra.assembly import assemble
from tests.builders.archives import (
    CARD,
    CONFIG,
    SAMPLES,
    WEIGHTS,
    WEIGHTS_INDEX,
    adapter_files,
    sharded_weights,
    weights_bytes,
)
from tests.fakes.hub_server import TOKEN, TOKEN_WITHOUT_RIGHTS, hub_server

ROOT = Path(__file__).resolve().parents[3]
MAX_BYTES = 4 * 1024 * 1024
LARGE = random.Random(0).randbytes(3 * 1024 * 1024)
DRIVER = """
import json, sys
from pathlib import Path
from hilora.errors import HiloraError
from services.registry.infra.hub_source import HubSource
from services.registry.infra.transfer import FetchLimits
for line in sys.stdin:
    order = json.loads(line)
    limits = FetchLimits(max_bytes=order["max_bytes"], max_seconds=60.0)
    cache = Path(order["root"]) / "cache"
    source = HubSource(is_allowed=True, limits=limits, cache=cache, token=order["token"])
    results = []
    for number, reference in enumerate(order["references"]):
        folder, progress = Path(order["root"]) / str(number), []
        folder.mkdir(exist_ok=True)
        try:
            exact = source.fetch(reference, folder, on_progress=lambda done, total: progress.append((done, total)))
            results.append({"source": exact, "progress": progress})
        except HiloraError as error:
            results.append({"kind": type(error).__name__, "code": error.code, "remedy": error.remedy})
            results[-1]["retry_after"] = getattr(error, "retry_after_seconds", None)
        results[-1]["files"] = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    print(json.dumps(results), flush=True)
"""


class Client:
    """A process with the hub source in it."""

    def __init__(self, hub, home, **environment):
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            env={
                **inherited,
                "HF_ENDPOINT": hub.url,
                "HF_HOME": str(home),
                "NO_PROXY": "127.0.0.1",
                **environment,
            },
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def order(self, root, *references, token=None, max_bytes=MAX_BYTES):
        root.mkdir(exist_ok=True)
        order = {"root": str(root), "references": references, "token": token, "max_bytes": max_bytes}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def fetch(self, root, *references, **options):
        self.order(root, *references, **options)
        return json.loads(self.process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def servers():
    with hub_server() as hub:
        yield hub


@pytest.fixture(scope="module")
def shared_client(servers, tmp_path_factory):
    with Client(servers, tmp_path_factory.mktemp("home")) as client:
        yield client


@pytest.fixture
def hub(servers):
    servers.reset()
    return servers


@pytest.fixture
def fetch(shared_client, hub):
    return shared_client.fetch


def unfinished(folder):
    return sorted((folder / "cache").glob("*.incomplete"))


class TestFetching:
    def test_only_the_files_of_an_adapter_at_one_commit(self, hub, fetch, tmp_path):
        extra = {CARD: b"# card", "evil.py": b"import os", "adapter_model.bin": b"\x80", "config.json": b"{}"}
        commit = hub.add("owner/sorter", {**adapter_files(), **extra}, tag="v1")

        by_branch, by_tag, by_commit = fetch(
            tmp_path / "out", "owner/sorter", "owner/sorter@v1", f"owner/sorter@{commit}"
        )

        for result in (by_branch, by_tag, by_commit):
            assert result["source"] == f"owner/sorter@{commit}"
            assert result["files"] == sorted([CARD, CONFIG, SAMPLES, WEIGHTS])
        assert (tmp_path / "out" / "0" / WEIGHTS).read_bytes() == adapter_files()[WEIGHTS]
        assert not any("evil.py" in request or ".bin" in request for request in hub.requests)
        assert not any("/config.json" in request for request in hub.requests)
        assert unfinished(tmp_path / "out") == []

    def test_progress_says_how_much_of_how_much(self, hub, fetch, tmp_path):
        files = {**adapter_files(), WEIGHTS: LARGE}
        hub.add("owner/sorter", files)

        (result,) = fetch(tmp_path / "out", "owner/sorter")

        total = sum(len(data) for data in files.values())
        done = [entry[0] for entry in result["progress"]]
        assert {entry[1] for entry in result["progress"]} == {total}
        assert done == sorted(done)
        assert done[-1] == total
        assert len(done) > 10

    def test_a_sharded_repository_becomes_one_file_of_weights(self, hub, fetch, tmp_path):
        whole = weights_bytes()
        hub.add("owner/sharded", {CONFIG: adapter_files()[CONFIG], **sharded_weights(whole, num_shards=3)})

        (result,) = fetch(tmp_path / "out", "owner/sharded")
        assert WEIGHTS_INDEX in result["files"]
        assert len(result["files"]) == 5
        assemble(tmp_path / "out" / "0")

        assert sorted(path.name for path in (tmp_path / "out" / "0").iterdir()) == sorted([CONFIG, WEIGHTS])
        joined = safetensors.torch.load((tmp_path / "out" / "0" / WEIGHTS).read_bytes())
        assert joined.keys() == safetensors.torch.load(whole).keys()
        assert all(joined[name].equal(tensor) for name, tensor in safetensors.torch.load(whole).items())

    def test_one_file_of_weights_wins_over_shards(self, hub, fetch, tmp_path):
        hub.add("owner/both", {**adapter_files(), **sharded_weights(weights_bytes(), num_shards=2)})

        (result,) = fetch(tmp_path / "out", "owner/both")

        assert result["files"] == sorted([CONFIG, SAMPLES, WEIGHTS])

    def test_a_card_too_long_to_keep_is_left_there(self, hub, fetch, tmp_path):
        hub.add("owner/sorter", {**adapter_files(), CARD: bytes(600 * 1024)})

        (result,) = fetch(tmp_path / "out", "owner/sorter")

        assert CARD not in result["files"]
        assert not any(CARD in request for request in hub.requests)

    def test_what_the_library_has_cached_is_not_fetched_again(self, hub, fetch, tmp_path):
        files = adapter_files()
        commit = hub.add("owner/sorter", files)
        snapshot = tmp_path / "library" / "models--owner--sorter" / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / WEIGHTS).write_bytes(files[WEIGHTS])
        (snapshot / CONFIG).write_bytes(b"{}")  # damaged

        with Client(hub, tmp_path / "home", HF_HUB_CACHE=str(tmp_path / "library")) as client:
            (result,) = client.fetch(tmp_path / "out", "owner/sorter")

        assert "source" in result
        assert not any("/stored/" in request for request in hub.requests)
        assert (tmp_path / "out" / "0" / CONFIG).read_bytes() == files[CONFIG]


class TestRefusals:
    def test_what_cannot_be_fetched_says_why(self, hub, fetch, tmp_path):
        hub.add("owner/gated", adapter_files(), is_gated=True)
        hub.add("owner/private", adapter_files(), is_private=True)
        hub.add("owner/sorter", adapter_files())
        hub.add("owner/pickle", {CONFIG: b"{}", "adapter_model.bin": b"\x80"})
        hub.add("owner/base", {"config.json": b"{}"})
        hub.add("owner/shards", {CONFIG: b"{}", "adapter_model-00001-of-00002.safetensors": b""})
        hub.add("owner/large", {**adapter_files(), WEIGHTS: bytes(MAX_BYTES + 1)})
        cases = {
            "owner/nobody": "hub_not_found",
            "owner/private": "hub_not_found",
            "owner/gated": "hub_gated",
            "owner/sorter@v9": "hub_revision_not_found",
            "owner/pickle": "pickle_refused",
            "owner/base": "not_an_adapter",
            "owner/shards": "not_an_adapter",
            "owner/large": "upload_too_large",
            "not a repo": "invalid_hub_reference",
        }

        results = fetch(tmp_path / "out", *cases)

        assert [result["code"] for result in results] == list(cases.values())
        assert all(result["remedy"] for result in results)
        assert all(result["files"] in ([], [CONFIG]) for result in results)
        assert not any("owner/large/resolve" in request for request in hub.requests), "refused by size before download"

    @pytest.mark.parametrize("token", ["hf_mistyped", TOKEN_WITHOUT_RIGHTS])
    def test_a_token_that_opens_nothing_is_named(self, hub, fetch, tmp_path, token):
        hub.add("owner/sorter", adapter_files())

        (result,) = fetch(tmp_path / "out", "owner/sorter", token=token)

        assert (result["kind"], result["code"]) == ("InvalidInput", "hub_access_denied")
        assert "HF_TOKEN" in result["remedy"]
        assert token not in json.dumps(result)

    @pytest.mark.parametrize("by_setting", [True, False])
    def test_a_token_opens_what_is_private_or_gated_and_goes_nowhere_else(self, hub, fetch, tmp_path, by_setting):
        hub.add("owner/gated", adapter_files(), is_gated=True)
        hub.add("owner/private", adapter_files(), is_private=True)
        references = ("owner/gated", "owner/private")

        if by_setting:
            results = fetch(tmp_path / "out", *references, token=TOKEN)
        else:
            with Client(hub, tmp_path / "home", HF_TOKEN=TOKEN) as client:
                results = client.fetch(tmp_path / "out", *references)

        assert all("source" in result for result in results)
        assert any("/stored/" in request for request in hub.requests)
        assert hub.leaked == []

    def test_offline_mode_is_named(self, hub, tmp_path):
        hub.add("owner/sorter", adapter_files())

        with Client(hub, tmp_path / "home", HF_HUB_OFFLINE="1") as client:
            (result,) = client.fetch(tmp_path / "out", "owner/sorter")

        assert (result["kind"], result["code"]) == ("InvalidInput", "hub_offline")
        assert hub.requests == []

    def test_what_is_too_large_in_sum_is_refused_before_it_is_fetched(self, hub, fetch, tmp_path):
        hub.add("owner/sorter", {**adapter_files(), WEIGHTS: LARGE})

        (result,) = fetch(tmp_path / "out", "owner/sorter", max_bytes=1024 * 1024)

        assert result["code"] == "upload_too_large"
        assert not any("resolve" in request for request in hub.requests)


class TestTrouble:
    @pytest.mark.parametrize(
        ("status", "kind", "code"),
        [
            (500, "Unavailable", "hub_unavailable"),
            (503, "Unavailable", "hub_unavailable"),
            (408, "Unavailable", "hub_unavailable"),
            (429, "Exhausted", "hub_rate_limited"),
            (400, "InvalidInput", "hub_refused"),
            (451, "InvalidInput", "hub_access_denied"),
        ],
    )
    def test_only_what_can_pass_is_worth_another_attempt(self, hub, fetch, tmp_path, status, kind, code):
        hub.status_of_all = status

        (result,) = fetch(tmp_path / "out", "owner/sorter")

        assert (result["kind"], result["code"]) == (kind, code)
        assert result["retry_after"] in {None, 7.0}

    def test_a_connection_that_breaks_is_taken_up_where_it_broke(self, hub, fetch, tmp_path):
        hub.add("owner/sorter", {CONFIG: adapter_files()[CONFIG], WEIGHTS: LARGE})
        hub.cuts = [10_000, 1_000_000, 700_000]

        (result,) = fetch(tmp_path / "out", "owner/sorter")

        assert "source" in result
        assert (tmp_path / "out" / "0" / WEIGHTS).read_bytes() == LARGE
        assert len(hub.ranges) >= 2

    def test_a_killed_download_is_taken_up_by_the_next_process(self, hub, fetch, tmp_path):
        hub.add("owner/sorter", {CONFIG: adapter_files()[CONFIG], WEIGHTS: LARGE})
        hub.add("owner/same", {CONFIG: b"{}", WEIGHTS: LARGE})
        hub.cuts = [10**9]  # the config, whole
        hub.stalls_after = 2_000_000
        with Client(hub, tmp_path / "home") as killed:
            killed.order(tmp_path / "out", "owner/sorter")
            while not any(path.stat().st_size > 1_500_000 for path in unfinished(tmp_path / "out")):
                assert killed.process.poll() is None
                time.sleep(0.02)
        (partial,) = unfinished(tmp_path / "out")
        arrived = partial.stat().st_size

        (result,) = fetch(tmp_path / "out", "owner/same")

        assert "source" in result
        assert hub.ranges == [f"bytes={arrived}-"]
        assert (tmp_path / "out" / "0" / WEIGHTS).read_bytes() == LARGE
        assert unfinished(tmp_path / "out") == []

    def test_a_server_without_ranges_starts_again(self, hub, fetch, tmp_path):
        hub.add("owner/sorter", {CONFIG: adapter_files()[CONFIG], WEIGHTS: LARGE})
        hub.cuts = [10**9, 2_000_000]
        hub.ignores_ranges = True

        (result,) = fetch(tmp_path / "out", "owner/sorter")

        assert "source" in result
        assert (tmp_path / "out" / "0" / WEIGHTS).read_bytes() == LARGE

    def test_damaged_content_is_never_used(self, hub, fetch, tmp_path):
        hub.add("owner/sorter", adapter_files())
        hub.damages = 1

        damaged, sound = fetch(tmp_path / "out", "owner/sorter", "owner/sorter")

        assert (damaged["kind"], damaged["code"]) == ("Unavailable", "hub_content_mismatch")
        assert "source" in sound
