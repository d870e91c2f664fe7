"""What strangers send: every crafted file, name and address is refused with the code that says why, or is harmless.

The cases are tables in `tests/contract/hostile`. Each is read under a limit on memory and on processor time, and only
an error of our own may come out. To them come 20,000 inputs that nobody thought of, the same ones in every run;
`HILORA_FUZZ_INPUTS` and `HILORA_FUZZ_SEED` ask for more and for others.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hilora.adapter import check_adapter_name
from services.registry.adapter_files import is_adapter_file
from services.registry.infra.archive import unpack
from services.registry.infra.assembly import assemble
from services.registry.infra.hub_source import HubSource
from services.registry.infra.local_source import LocalFolderSource
from services.registry.infra.url_guard import UrlGuard, check_addresses
from services.registry.infra.url_source import UrlSource
from tests.builders.archives import CONFIG, SAMPLES, WEIGHTS, adapter_files, config_bytes, tar_bytes
from tests.contract.hostile.archive_files import ARCHIVES
from tests.contract.hostile.config_files import CONFIGS
from tests.contract.hostile.fuzzing import ARCHIVE, CONFIG_FILE, HEADER, INDEX, MISSHAPEN, SAMPLES_FILE, Target, inputs
from tests.contract.hostile.guard import ACCEPTED, outcome
from tests.contract.hostile.header_files import BOMBS, HEADERS
from tests.contract.hostile.other_files import HUB_REFERENCES, NAMES, SAMPLE_TEXTS, SHARDED
from tests.contract.hostile.validator import VALIDATOR
from tests.contract.hostile.web_addresses import ALLOWED_HOSTS, CLOSED_ADDRESSES, REDIRECTS, URLS
from tests.fakes.internet import answer, internet, redirect
from tests.fakes.registry_stack import ARCHIVE_LIMITS, FETCH_LIMITS, MAX_UPLOAD_BYTES, RegistryStack

PUBLIC = "93.184.215.14"
FILE_TABLES = {WEIGHTS: HEADERS, CONFIG: CONFIGS, SAMPLES: SAMPLE_TEXTS}
FILE_CASES = [
    pytest.param(name, build, code, id=f"{name}: {case}")
    for name, table in FILE_TABLES.items()
    for case, (code, build) in table.items()
]

NUM_INPUTS = int(os.environ.get("HILORA_FUZZ_INPUTS", "20000"))
SEED = int(os.environ.get("HILORA_FUZZ_SEED", "0"))
SHARES = {HEADER: 0.3, ARCHIVE: 0.25, CONFIG_FILE: 0.25, INDEX: 0.1, SAMPLES_FILE: 0.1}
MAX_FUZZ_BYTES = 256 * 1024 * 1024
MAX_FUZZ_SECONDS = 5.0
NUM_RUN: Counter[str] = Counter()


def written(folder, files):
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def with_file(name, data):
    return {**adapter_files(), name: data}


class TestFiles:
    @pytest.mark.parametrize(("name", "build", "code"), FILE_CASES)
    def test_a_crafted_file_is_refused_with_its_code(self, tmp_path, name, build, code):
        folder = written(tmp_path / "files", with_file(name, build()))

        assert outcome(partial(VALIDATOR.check_upload, folder)) == code

    @pytest.mark.parametrize("case", BOMBS)
    def test_what_only_its_expansion_makes_large_is_not_expanded(self, tmp_path, case):
        code, changes, build = BOMBS[case]
        files = {**with_file(WEIGHTS, build()), CONFIG: config_bytes(**changes)}
        folder = written(tmp_path / "files", files)

        assert outcome(partial(VALIDATOR.check_upload, folder)) == code

    @pytest.mark.parametrize("case", SHARDED)
    def test_crafted_shards_are_refused_with_their_code(self, tmp_path, case):
        code, build = SHARDED[case]
        shards = build()
        folder = written(tmp_path / "files", {**adapter_files(), **shards})
        if WEIGHTS not in shards:
            (folder / WEIGHTS).unlink()

        assert outcome(partial(assemble, folder)) == code

    def test_no_module_that_a_file_names_was_imported(self):
        assert "hostile_module" not in sys.modules


class TestArchives:
    @pytest.mark.parametrize("case", ARCHIVES)
    def test_a_crafted_archive_is_refused_with_its_code(self, tmp_path, case):
        code, build = ARCHIVES[case]
        archive = tmp_path / "archive"
        archive.write_bytes(build())
        inside = written(tmp_path / "inside", {})

        assert outcome(partial(unpack, archive, inside, ARCHIVE_LIMITS)) == code
        assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "inside"]
        assert all(is_adapter_file(path.name) and not path.is_symlink() for path in inside.iterdir())
        if code == ACCEPTED:
            assert {path.name: path.read_bytes() for path in inside.iterdir()} == adapter_files()


class TestNames:
    @pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:20]))
    def test_a_name_with_a_second_meaning_is_refused(self, name):
        assert outcome(partial(check_adapter_name, name)) == "invalid_adapter_name"

    @pytest.mark.parametrize("reference", HUB_REFERENCES, ids=lambda reference: ascii(reference[:30]))
    def test_a_reference_that_is_no_repository_is_refused(self, tmp_path, reference):
        hub = HubSource(is_allowed=True, limits=FETCH_LIMITS, cache=tmp_path)

        assert outcome(partial(hub.check, reference)) == "invalid_hub_reference"

    @pytest.mark.parametrize(
        ("reference", "code"),
        [
            ("/etc", "path_not_allowed"),
            ("{allowed}/../secret", "path_not_allowed"),
            ("{allowed}/link", "path_not_allowed"),
            ("{allowed}2", "path_not_allowed"),
            ("{allowed}/a\0b", "path_not_allowed"),
            ("/proc/self/environ", "path_not_allowed"),
            ("{allowed}/" + "x" * 3000, "path_not_found"),
            ("{allowed}/" + "x/" * 3000, "path_not_found"),
            ("{allowed}/file/below", "path_not_found"),
        ],
    )
    def test_a_path_out_of_the_allowed_folders_is_refused(self, tmp_path, reference, code):
        allowed = written(tmp_path / "allowed", {"file": b""})
        (allowed / "link").symlink_to("/etc")
        source = LocalFolderSource(allowed_folders=[allowed], limits=FETCH_LIMITS, unpack=unpack)

        assert outcome(partial(source.check, reference.replace("{allowed}", str(allowed)))) == code


class TestAddresses:
    @pytest.mark.parametrize("url", URLS, ids=lambda url: ascii(url[:60]))
    def test_a_url_is_refused_before_anything_is_looked_up(self, url):
        assert outcome(partial(UrlGuard(ALLOWED_HOSTS).check, url)) == URLS[url]

    @pytest.mark.parametrize("address", CLOSED_ADDRESSES)
    def test_an_allowed_host_at_a_closed_address_is_refused(self, address):
        url = UrlGuard(ALLOWED_HOSTS).check("http://files.example/a.zip")

        assert outcome(partial(check_addresses, url, [PUBLIC, address])) == "private_address"

    @pytest.mark.parametrize("location", REDIRECTS)
    def test_a_redirect_is_judged_like_a_url(self, tmp_path, location):
        with internet(tmp_path) as net:
            net.names = {"files.example": [[PUBLIC]], "inside.example": [["169.254.169.254"]]}
            net.pages["files.example/a.zip"] = redirect(location)

            assert fetched(net, tmp_path) == REDIRECTS[location]
            assert set(net.dialled) == {PUBLIC}

    def test_a_host_that_moves_between_two_requests_is_looked_at_twice(self, tmp_path):
        with internet(tmp_path) as net:
            net.names = {"files.example": [[PUBLIC], ["169.254.169.254"]]}
            net.pages["files.example/a.zip"] = redirect("/b.zip")

            assert fetched(net, tmp_path) == "private_address"
            assert net.dialled == [PUBLIC]

    def test_a_host_that_moves_after_it_was_looked_at_is_dialled_where_it_was(self, tmp_path):
        with internet(tmp_path) as net:
            net.names = {"files.example": [[PUBLIC], ["127.0.0.1"]]}
            net.pages["files.example/a.zip"] = answer(tar_bytes(adapter_files()))

            assert fetched(net, tmp_path) == ACCEPTED
            assert net.dialled == [PUBLIC]


def fetched(net, folder):
    """The outcome of a fetch; the servers of the test need threads, whose memory is not the reader's."""
    source = UrlSource(
        allowed_hosts=ALLOWED_HOSTS,
        limits=FETCH_LIMITS,
        unpack=partial(unpack, limits=ARCHIVE_LIMITS),
        access=net.access(),
    )
    target = written(folder / "target", {})
    return outcome(
        lambda: source.fetch("http://files.example/a.zip", target, on_progress=lambda *_: None), max_bytes=4 << 30
    )


class TestTheDoor:
    """The same files, sent to the service as a client sends them."""

    @pytest.mark.parametrize(("name", "build", "code"), [case for case in FILE_CASES if case.values[2] != ACCEPTED])
    async def test_what_is_refused_is_answered_and_not_kept(self, tmp_path, name, build, code):
        files = with_file(name, build())
        stack = RegistryStack(tmp_path)
        async with stack.client() as client:
            refusal = await client.post(
                "/v1/adapters", data={"name": "bad"}, files=[("files", item) for item in files.items()]
            )

        assert answered(refusal) == expected(code, num_bytes=sum(map(len, files.values())))
        assert stack.stored() == []

    @pytest.mark.parametrize("case", [case for case in ARCHIVES if ARCHIVES[case][0] != ACCEPTED])
    async def test_a_refused_archive_is_answered_and_not_kept(self, tmp_path, case):
        code, build = ARCHIVES[case]
        content = build()
        stack = RegistryStack(tmp_path)
        headers = {"Content-Type": "application/octet-stream"}
        async with stack.client() as client:
            refusal = await client.put("/v1/adapters?name=bad", content=content, headers=headers)

        assert answered(refusal) == expected(code, num_bytes=len(content))
        assert stack.stored() == []


def answered(response):
    return response.status_code, response.json()["error"]["code"]


def expected(code, *, num_bytes):
    """What the door says; it looks at the size first."""
    if num_bytes > MAX_UPLOAD_BYTES:
        return 413, "upload_too_large"
    return (422, code) if num_bytes else (400, "malformed_upload")


def read(target: Target, data: bytes, folder) -> str:
    """The outcome of one input, which may leave nothing but files of an adapter in its folder."""
    folder.mkdir(exist_ok=True)
    # Emptied and not made anew: twenty thousand times a disk's journal would be waited for.
    for left in folder.iterdir():
        left.unlink()
    if target is ARCHIVE:
        archive = folder.parent / "archive"
        archive.write_bytes(data)
        work = partial(unpack, archive, folder, ARCHIVE_LIMITS)
    else:
        assert target.files is not None
        for name, content in target.files(data).items():
            (folder / name).write_bytes(content)
        work = partial(assemble if target is INDEX else VALIDATOR.check_upload, folder)
    code = outcome(work, max_bytes=MAX_FUZZ_BYTES, max_seconds=MAX_FUZZ_SECONDS)
    NUM_RUN[target.name] += 1
    assert code == ACCEPTED or code in target.codes, code
    return code


class TestFuzzedInput:
    @pytest.mark.parametrize("target", SHARES, ids=lambda target: target.name)
    def test_every_input_is_read_or_refused_with_a_documented_code(self, tmp_path, target):
        seen: Counter[str] = Counter()
        for number, data in enumerate(inputs(target, round(SHARES[target] * NUM_INPUTS), seed=SEED)):
            try:
                seen[read(target, data, tmp_path / "files")] += 1
            except BaseException as error:
                raise AssertionError(f"input {number} of seed {SEED}: {data[:400]!r}") from error
        assert len(seen) >= 3, "it gets past the first check"
        assert ACCEPTED in seen


class TestMisshapenInput:
    """The same by hypothesis, which makes a failing input small."""

    @pytest.mark.parametrize("target", SHARES, ids=lambda target: target.name)
    def test_misshapen_inputs_are_read_or_refused(self, tmp_path, target):
        @settings(
            max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(source=st.randoms(use_true_random=False))
        def check(source):
            read(target, MISSHAPEN[target.name](source), tmp_path / "files")

        check()


class TestTheCount:
    def test_so_many_were_tried(self, capsys):
        tables = {
            "headers": HEADERS,
            "bombs": BOMBS,
            "configs": CONFIGS,
            "shards": SHARDED,
            "samples": SAMPLE_TEXTS,
            "archives": ARCHIVES,
            "names": NAMES,
            "hub references": HUB_REFERENCES,
            "urls": URLS,
            "addresses": CLOSED_ADDRESSES,
            "redirects": REDIRECTS,
        }
        counts = {name: len(table) for name, table in tables.items()}
        with capsys.disabled():
            sys.stdout.write(f"\nhostile input: {sum(counts.values())} crafted: {counts}\n")
            sys.stdout.write(f"hostile input: {NUM_RUN.total()} fuzzed: {dict(NUM_RUN)}\n")
        num_files = sum(counts[name] for name in ("headers", "bombs", "configs", "shards", "samples", "archives"))
        assert num_files >= 60
        # Where single tests were chosen, the others did not run.
        assert len(NUM_RUN) < len(SHARES) or NUM_RUN.total() >= NUM_INPUTS
