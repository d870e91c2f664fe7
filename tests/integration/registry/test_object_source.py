"""Object stores: a real S3 server through s3fs, and fsspec's own store in memory."""

from __future__ import annotations

import socket
from functools import partial

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from hilora.errors import InvalidAdapter, InvalidInput, Unavailable
from services.registry.infra.archive import unpack
from services.registry.infra.assembly import assemble
from services.registry.infra.object_source import STORE_OPTIONS, ObjectStoreSource
from services.registry.infra.transfer import FetchLimits
from tests.builders.archives import (
    CARD,
    CONFIG,
    SAMPLES,
    WEIGHTS,
    WEIGHTS_INDEX,
    adapter_files,
    sharded_weights,
    tar_bytes,
    weights_bytes,
    zstd_bytes,
)
from tests.fakes.registry_stack import ARCHIVE_LIMITS

PREFIX = {"s3": "s3://hilora-pool/adapters", "memory": "memory://pool/adapters"}


@pytest.fixture(scope="module")
def s3_server():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def stores(s3_server):
    """One client a scheme: making one takes seconds."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", s3_server)
        environment.setenv("AWS_ACCESS_KEY_ID", "key")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield {scheme: Store(scheme) for scheme in PREFIX}


@pytest.fixture(params=PREFIX)
def store(request, stores):
    stores[request.param].empty()
    return stores[request.param]


class Store:
    """The store under test, and the operator's own way into it."""

    def __init__(self, scheme):
        self.scheme = scheme
        self.prefix = PREFIX[scheme]
        self.fs = fsspec.filesystem(scheme, **({"use_listings_cache": False} if scheme == "s3" else {}))
        self.fs.makedirs(self.prefix.partition("://")[2].partition("/")[0], exist_ok=True)

    def empty(self):
        for path in self.fs.find(self.prefix.partition("://")[2]):
            self.fs.rm_file(path)

    def put(self, folder, files):
        for name, data in files.items():
            self.fs.pipe_file(f"{self.prefix}/{folder}/{name}".partition("://")[2], data)


def source_of(*prefixes, max_bytes=1 << 20, **options):
    return ObjectStoreSource(
        allowed_prefixes=prefixes,
        limits=FetchLimits(max_bytes=max_bytes, max_seconds=60.0),
        unpack=partial(unpack, limits=ARCHIVE_LIMITS),
        store_options={**STORE_OPTIONS, "memory": {}, **options},
    )


def fetch(store, reference, folder, *, listener=lambda *_: None, **options):
    return source_of(store.prefix, **options).fetch(f"{store.prefix}/{reference}", folder, on_progress=listener)


def refused(store, reference, folder, *, kind=InvalidInput, **options):
    with pytest.raises(kind) as refusal:
        fetch(store, reference, folder, **options)
    assert list(folder.iterdir()) == []
    assert refusal.value.remedy
    return refusal.value.code


class TestFetching:
    def test_the_files_of_a_folder_and_nothing_else(self, store, tmp_path):
        store.put("sorter", {**adapter_files(), CARD: b"# card", "evil.py": b"", "optimizer.pt": b"\x80"})

        exact = fetch(store, "sorter/", tmp_path)

        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([CARD, CONFIG, SAMPLES, WEIGHTS])
        assert (tmp_path / WEIGHTS).read_bytes() == adapter_files()[WEIGHTS]
        reference, _, version = exact.rpartition("@")
        assert reference == f"{store.prefix}/sorter"
        assert version
        assert version != "unversioned"

    def test_another_content_is_another_version(self, store, tmp_path):
        store.put("sorter", adapter_files())
        before = fetch(store, "sorter", tmp_path)
        store.put("sorter", adapter_files(weights=weights_bytes(seed=7)))

        assert fetch(store, "sorter", tmp_path) != before

    def test_shards_are_found_by_their_index(self, store, tmp_path):
        store.put("sorter", {CONFIG: b"{}", **sharded_weights(weights_bytes(), num_shards=3)})

        fetch(store, "sorter", tmp_path)
        assemble(tmp_path)

        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([CONFIG, WEIGHTS])

    def test_an_archive_is_unpacked(self, store, tmp_path):
        store.put("packed", {"sorter.tar.zst": zstd_bytes(tar_bytes(adapter_files()))})

        exact = fetch(store, "packed/sorter.tar.zst", tmp_path)

        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([CONFIG, SAMPLES, WEIGHTS])
        assert exact.startswith(f"{store.prefix}/packed/sorter.tar.zst@")

    def test_progress_says_how_much_of_how_much(self, store, tmp_path):
        files = adapter_files()
        store.put("sorter", files)
        seen = []

        fetch(store, "sorter", tmp_path, listener=lambda done, total: seen.append((done, total)))

        total = sum(len(data) for data in files.values())
        assert seen[-1] == (total, total)


class TestRefusals:
    def test_what_is_not_there(self, store, tmp_path):
        assert refused(store, "nobody", tmp_path) == "object_not_found"
        assert refused(store, "nobody.zip", tmp_path) == "object_not_found"

    def test_what_makes_no_adapter(self, store, tmp_path):
        store.put("half", {CONFIG: b"{}"})
        store.put("pickle", {CONFIG: b"{}", "adapter_model.bin": b"\x80"})
        store.put("index", {CONFIG: b"{}", WEIGHTS_INDEX: b'{"weight_map": {"a": "../../x"}}'})
        store.put("list", {CONFIG: b"{}", WEIGHTS_INDEX: b"[]"})

        assert refused(store, "half", tmp_path, kind=InvalidAdapter) == "not_an_adapter"
        assert refused(store, "pickle", tmp_path, kind=InvalidAdapter) == "pickle_refused"
        assert refused(store, "index", tmp_path, kind=InvalidAdapter) == "invalid_shard_index"
        assert refused(store, "list", tmp_path, kind=InvalidAdapter) == "invalid_shard_index"

    def test_what_is_too_large_in_sum_is_refused_before_it_is_read(self, store, tmp_path):
        store.put("sorter", adapter_files())
        store.put("packed", {"sorter.zip": bytes(2000)})

        assert refused(store, "sorter", tmp_path, max_bytes=1000) == "upload_too_large"
        assert refused(store, "packed/sorter.zip", tmp_path, max_bytes=1000) == "upload_too_large"

    @pytest.mark.parametrize(
        ("reference", "code"),
        [
            ("{root}/adapters-of-others/sorter", "object_store_not_allowed"),
            ("{root}", "object_store_not_allowed"),
            ("{prefix}/../secret", "invalid_object_reference"),
            ("{prefix}/./sorter", "invalid_object_reference"),
            ("{prefix}//sorter", "invalid_object_reference"),
            ("{prefix}/*", "invalid_object_reference"),
            ("{prefix}/sorter?versionId=1", "invalid_object_reference"),
            ("{prefix}/%2e%2e/secret", "invalid_object_reference"),
            ("{prefix}/a\nb", "invalid_object_reference"),
            ("{prefix}/a b", "invalid_object_reference"),
            ("simplecache::{prefix}/sorter", "invalid_object_reference"),
            ("{prefix}/sorter::file:///etc", "invalid_object_reference"),
            ("file:///etc/passwd", "invalid_object_reference"),
            ("local:///etc/passwd", "invalid_object_reference"),
            ("http://127.0.0.1/a", "invalid_object_reference"),
            ("github://o:r@main/a", "invalid_object_reference"),
            ("sftp://host/a", "invalid_object_reference"),
            ("s3://key:secret@bucket/a", "invalid_object_reference"),
            ("", "invalid_object_reference"),
        ],
    )
    @pytest.mark.parametrize("scheme", PREFIX)
    def test_a_reference_leads_nowhere_else(self, scheme, reference, code):
        prefix = PREFIX[scheme]

        with pytest.raises(InvalidInput) as refusal:
            source_of(prefix).check(reference.format(prefix=prefix, root=prefix.rpartition("/")[0]))

        assert refusal.value.code == code

    def test_without_a_list_nothing_is_read(self):
        with pytest.raises(InvalidInput) as refusal:
            source_of().check("s3://hilora-pool/adapters/sorter")

        assert refusal.value.code == "object_store_not_allowed"

    @pytest.mark.parametrize("prefix", ["", "s3://", "bucket", "file:///", "s3://b/../c", "s3://*"])
    def test_a_list_that_says_nothing_sound_is_refused_at_the_start(self, prefix):
        with pytest.raises(InvalidInput) as refusal:
            source_of(prefix)

        assert refusal.value.code == "invalid_setting"


class TestTrouble:
    def test_a_store_that_is_away_is_worth_another_attempt(self, stores, tmp_path, monkeypatch):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
            source = source_of("s3://bucket", s3={"config_kwargs": {"retries": {"max_attempts": 0}}})

            with pytest.raises(Unavailable) as trouble:
                source.fetch("s3://bucket/sorter", tmp_path, on_progress=lambda *_: None)

        assert trouble.value.code == "object_store_unavailable"

    def test_missing_credentials_are_named(self, stores, tmp_path, monkeypatch):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        source = source_of("s3://bucket", s3={"config_kwargs": {"retries": {"max_attempts": 1}}})

        with pytest.raises(InvalidInput) as refusal:
            source.fetch("s3://bucket/sorter", tmp_path, on_progress=lambda *_: None)

        assert refusal.value.code == "object_access_denied"

    def test_a_client_that_is_not_installed_is_named(self):
        try:
            fsspec.get_filesystem_class("gs")
        except ImportError:
            with pytest.raises(InvalidInput) as refusal:
                source_of("gs://bucket").check("gs://bucket/sorter")
            assert refusal.value.code == "object_store_not_installed"
        else:
            source_of("gs://bucket").check("gs://bucket/sorter")
