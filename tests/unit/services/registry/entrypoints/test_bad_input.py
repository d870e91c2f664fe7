"""Bad input at the REST door: refused with a code and a remedy, before anything is kept."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile

import pytest
import torch

from tests.builders.adapters import Q_PROJ, peft_tensors, random_adapter
from tests.builders.archives import (
    CONFIG,
    SAMPLES,
    WEIGHTS,
    adapter_files,
    config_bytes,
    safetensors_bytes,
    samples_bytes,
    tar_bytes,
    weights_bytes,
    zip_bytes,
    zstd_bytes,
)
from tests.fakes.registry_stack import MAX_UPLOAD_BYTES, RegistryStack

LORA_A = f"base_model.model.{Q_PROJ}.lora_A.weight"
F32_PAIR = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def changed_tensor(name=LORA_A, change=lambda tensor: tensor):
    tensors = peft_tensors(random_adapter())
    return weights_bytes(tensors={**tensors, name: change(tensors[name])})


def with_nan(tensor):
    damaged = tensor.clone()
    damaged[0, 0] = float("nan")
    return damaged


def all_zero():
    return weights_bytes(
        tensors={
            name: torch.zeros_like(tensor) if "lora_B" in name else tensor
            for name, tensor in peft_tensors(random_adapter()).items()
        }
    )


def rank_17():
    return {
        "config": config_bytes(r=17),
        "weights": weights_bytes(tensors=peft_tensors(random_adapter(rank=17, shapes={Q_PROJ: (12, 40)}))),
    }


def rare_zip():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr(CONFIG, config_bytes())
    return buffer.getvalue()


def zip_with_a_long_list():
    """Contents of 30,000 lines: each becomes an object of a KB before the first can be looked at."""
    return zip_bytes({f"{number}.md": b"" for number in range(30_000)})


def zip64():
    data = zip_bytes(adapter_files())
    end = data.rfind(b"PK\x05\x06")
    return data[:end] + b"PK\x06\x07" + bytes(16) + data[end:]


def bomb():
    return tar_bytes({WEIGHTS: bytes(48 << 20)})


def in_parts(data, size):
    return (data[start : start + size] for start in range(0, len(data), size))


BAD_ARCHIVES = {
    "parent folder": ("unsafe_path", lambda: zip_bytes({"../../adapter_config.json": b"{}"})),
    "parent folder in a tar": ("unsafe_path", lambda: tar_bytes({"a/../../adapter_config.json": b"{}"})),
    "absolute path": ("unsafe_path", lambda: tar_bytes({"/etc/adapter_config.json": b"{}"})),
    "backslashes": ("unsafe_path", lambda: zip_bytes({"..\\adapter_config.json": b"{}"})),
    "drive letter": ("unsafe_path", lambda: zip_bytes({"C:adapter_config.json": b"{}"})),
    "symlink in a zip": ("link_in_archive", lambda: zip_bytes({}, symlinks={WEIGHTS: "/etc/passwd"})),
    "symlink in a tar": ("link_in_archive", lambda: tar_bytes({}, special={WEIGHTS: tarfile.SYMTYPE})),
    "hard link": ("link_in_archive", lambda: tar_bytes({}, special={WEIGHTS: tarfile.LNKTYPE})),
    "device": ("special_file_in_archive", lambda: tar_bytes({}, special={WEIGHTS: tarfile.CHRTYPE})),
    "pipe": ("special_file_in_archive", lambda: tar_bytes({}, special={WEIGHTS: tarfile.FIFOTYPE})),
    "zip bomb": ("zip_bomb", lambda: zip_bytes({**adapter_files(), WEIGHTS: bytes(48 << 20)})),
    "gzip bomb": ("zip_bomb", lambda: tar_bytes({WEIGHTS: bytes(48 << 20)}, compression="gz")),
    "bomb that is passed over": ("zip_bomb", lambda: tar_bytes({"README.md": bytes(48 << 20)}, compression="gz")),
    "zstd bomb": ("zip_bomb", lambda: zstd_bytes(tar_bytes({WEIGHTS: bytes(48 << 20)}), level=19)),
    "zstd bomb in frames": ("zip_bomb", lambda: b"".join(zstd_bytes(part) for part in in_parts(bomb(), 1 << 20))),
    "zstd window": ("zstd_window_too_large", lambda: zstd_bytes(tar_bytes({WEIGHTS: bytes(1 << 20)}), window_log=27)),
    "zstd dictionary": ("unreadable_archive", lambda: b"\x28\xb5\x2f\xfd\x01\x00\x05" + bytes(30)),
    "cut tar.zst": ("unreadable_archive", lambda: zstd_bytes(tar_bytes(adapter_files()))[:400]),
    "zst that is no tar": ("unreadable_archive", lambda: zstd_bytes(b"hello" * 1000)),
    "symlink in a tar.zst": (
        "link_in_archive",
        lambda: zstd_bytes(tar_bytes({}, special={WEIGHTS: tarfile.SYMTYPE})),
    ),
    "long list of contents": ("too_many_members", lambda: zip_with_a_long_list()),
    "zip64": ("zip64_archive", lambda: zip64()),
    "name that begins with NUL": (
        "unreadable_archive",
        lambda: zip_bytes({**adapter_files(), "X.md": b""}).replace(b"X.md", b"\0.md"),
    ),
    "zip without its end": ("unreadable_archive", lambda: b"PK\x03\x04" + bytes(100)),
    "many members": ("too_many_members", lambda: zip_bytes({f"{number}.md": b"" for number in range(9)})),
    "pickle": ("pickle_refused", lambda: zip_bytes({CONFIG: config_bytes(), "adapter_model.bin": b"\x80\x04."})),
    "pickle of a trainer": ("pickle_refused", lambda: tar_bytes({**adapter_files(), "training_args.pt": b"\x80"})),
    "program": ("unexpected_file", lambda: zip_bytes({**adapter_files(), "modeling_evil.py": b"import os"})),
    "deep folder": ("nested_archive", lambda: zip_bytes({f"a/b/{CONFIG}": b"{}"})),
    "file twice": ("duplicate_member", lambda: zip_bytes({CONFIG: b"{}", f"a/{CONFIG}": b"{}"})),
    "rare compression": ("unsupported_compression", lambda: rare_zip()),
    "not an archive": ("unreadable_archive", lambda: b"hello" * 1000),
    "cut zip": ("unreadable_archive", lambda: zip_bytes(adapter_files())[:400]),
    "cut tar.gz": ("unreadable_archive", lambda: tar_bytes(adapter_files(), compression="gz")[:400]),
    "without weights": ("missing_file", lambda: zip_bytes({CONFIG: config_bytes(), SAMPLES: samples_bytes()})),
}

BAD_FILES = {
    "empty weights": ("truncated_header", {"weights": b""}),
    "truncated header": ("truncated_header", {"weights": weights_bytes()[:60]}),
    "huge header": ("header_too_large", {"weights": safetensors_bytes(b"{}", header_bytes=2**62)}),
    "header longer than the file": ("truncated_header", {"weights": safetensors_bytes(b"{}", header_bytes=4000)}),
    "header that is no JSON": ("invalid_header", {"weights": safetensors_bytes(b"not json")}),
    "header that is a list": ("invalid_header", {"weights": safetensors_bytes(b"[1]")}),
    "deeply nested header": ("invalid_header", {"weights": safetensors_bytes(b"[" * 200_000)}),
    "key twice": ("invalid_header", {"weights": safetensors_bytes(b'{"a": {}, "a": {}}')}),
    "truncated data": ("truncated_file", {"weights": weights_bytes()[:-100]}),
    "data after the end": ("trailing_data", {"weights": weights_bytes() + b"extra"}),
    "shape that lies": (
        "invalid_offsets",
        {"weights": safetensors_bytes({LORA_A: {**F32_PAIR, "shape": [4, 2**30]}}, bytes(16))},
    ),
    "empty but larger than memory": (
        "invalid_shape",
        {
            "weights": safetensors_bytes(
                {LORA_A: {"dtype": "F32", "shape": [2**31, 2**31, 2**31, 0], "data_offsets": [0, 0]}}
            )
        },
    ),
    "negative shape": ("invalid_shape", {"weights": safetensors_bytes({LORA_A: {**F32_PAIR, "shape": [-2, -2]}})}),
    "boolean shape": ("invalid_shape", {"weights": safetensors_bytes({LORA_A: {**F32_PAIR, "shape": [True, 4]}})}),
    "overlap": (
        "invalid_offsets",
        {"weights": safetensors_bytes({"a": F32_PAIR, "b": {**F32_PAIR, "data_offsets": [8, 24]}}, bytes(24))},
    ),
    "gap": ("invalid_offsets", {"weights": safetensors_bytes({"a": {**F32_PAIR, "data_offsets": [8, 24]}}, bytes(24))}),
    "offsets backwards": (
        "invalid_offsets",
        {"weights": safetensors_bytes({"a": {**F32_PAIR, "data_offsets": [16, 0]}})},
    ),
    "dtype": ("unsupported_dtype", {"weights": safetensors_bytes({"a": {**F32_PAIR, "dtype": "I32"}}, bytes(16))}),
    "nan": ("non_finite_weights", {"weights": changed_tensor(change=with_nan)}),
    "no effect": ("no_effective_module", {"weights": all_zero()}),
    "wrong shape": ("adapter_shape_mismatch", {"weights": changed_tensor(change=lambda _: torch.ones(4, 13))}),
    "rank above the cap": ("rank_too_large", rank_17()),
    "unknown module": (
        "unknown_target_module",
        {"weights": weights_bytes(tensors=peft_tensors(random_adapter(shapes={"model.layers.9.q_proj": (12, 12)})))},
    ),
    "config that is no JSON": ("invalid_adapter_config", {"config": b"{"}),
    "config that is a list": ("invalid_adapter_config", {"config": b"[]"}),
    "deeply nested config": ("invalid_adapter_config", {"config": b"[" * 200_000}),
    "dora": ("unsupported_adapter_feature", {"config": config_bytes(use_dora=True)}),
    "empty samples": ("empty_samples", {"samples": b""}),
    "blank samples": ("empty_samples", {"samples": b"\n \n"}),
    "samples that are no JSON": ("invalid_samples", {"samples": samples_bytes("a") + b"oops\n"}),
    "samples without text": ("invalid_samples", {"samples": b'{"prompt": "a"}\n'}),
    "an empty text": ("invalid_samples", {"samples": samples_bytes("a", " ")}),
    "a lone surrogate": ("invalid_samples", {"samples": b'{"text": "\\ud800"}\n'}),
    "too many samples": ("too_many_samples", {"samples": samples_bytes(*["a"] * 1001)}),
}


@pytest.fixture
def stack(tmp_path):
    return RegistryStack(tmp_path)


async def refused(stack, *, status, code, **request):
    before = stack.stored()
    async with stack.client() as client:
        answer = await client.post("/v1/adapters", **request)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code, error
    assert error["remedy"]
    assert stack.stored() == before
    assert list((stack.data_dir / "incoming").iterdir()) == []
    assert await stack.jobs.all() == []
    return error


class TestArchives:
    @pytest.mark.parametrize("kind", BAD_ARCHIVES)
    async def test_a_bad_archive_is_refused(self, stack, kind):
        code, build = BAD_ARCHIVES[kind]

        await refused(stack, status=422, code=code, data={"name": "bad"}, files={"archive": ("a.zip", build())})

    async def test_sending_pickles_one_by_one_is_refused_too(self, stack):
        files = [("files", (CONFIG, config_bytes())), ("files", ("adapter_model.bin", b"\x80\x04."))]

        error = await refused(stack, status=422, code="pickle_refused", data={"name": "bad"}, files=files)

        assert "safetensors" in error["remedy"]


class TestFiles:
    @pytest.mark.parametrize("kind", BAD_FILES)
    async def test_a_bad_file_is_refused(self, stack, kind):
        code, changes = BAD_FILES[kind]
        files = [("files", item) for item in adapter_files(**changes).items()]

        await refused(stack, status=422, code=code, data={"name": "bad"}, files=files)

    async def test_the_line_of_a_bad_sample_is_named(self, stack):
        files = [("files", item) for item in adapter_files(samples=samples_bytes("a", "b") + b"{}\n").items()]

        error = await refused(stack, status=422, code="invalid_samples", data={"name": "bad"}, files=files)

        assert error["param"] == "samples.jsonl:3"

    @pytest.mark.parametrize("kind", ["nan", "no effect"])
    async def test_what_a_large_upload_hides_fails_its_job(self, tmp_path, kind):
        stack = RegistryStack(tmp_path, max_eager_bytes=0)
        code, changes = BAD_FILES[kind]
        async with stack.client() as client:
            files = [("files", item) for item in adapter_files(**changes).items()]
            accepted = await client.post("/v1/adapters", data={"name": "bad"}, files=files)
            assert accepted.status_code == 202

            await stack.work()

            job = (await client.get(accepted.headers["Location"])).json()
        assert job["state"] == "FAILED"
        assert job["error"]["code"] == code
        assert job["error"]["remedy"]
        assert stack.stored() == []

    @pytest.mark.parametrize("kind", ["wrong shape", "unknown module", "dora"])
    async def test_what_the_header_of_a_large_upload_tells_is_refused_at_once(self, tmp_path, kind):
        stack = RegistryStack(tmp_path, max_eager_bytes=0)
        code, changes = BAD_FILES[kind]
        files = [("files", item) for item in adapter_files(**changes).items()]

        await refused(stack, status=422, code=code, data={"name": "bad"}, files=files)


class TestForm:
    @pytest.mark.parametrize("name", ["../evil", "a/b", "auto", ".hidden", "x" * 129, "naïve"])
    async def test_a_bad_name(self, stack, name):
        files = [("files", item) for item in adapter_files().items()]

        await refused(stack, status=400, code="invalid_adapter_name", data={"name": name}, files=files)

    async def test_no_name(self, stack):
        files = [("files", item) for item in adapter_files().items()]

        await refused(stack, status=400, code="name_required", files=files)

    async def test_an_upload_above_the_limit(self, stack):
        files = {"archive": ("a.zip", bytes(MAX_UPLOAD_BYTES + 1))}

        await refused(stack, status=413, code="upload_too_large", data={"name": "bad"}, files=files)

    async def test_an_upload_above_the_limit_that_hides_its_length(self, stack):
        async def body():
            yield b'--x\r\nContent-Disposition: form-data; name="archive"; filename="a.zip"\r\n\r\n'
            for _ in range(5):
                yield bytes(1024 * 1024)

        headers = {"content-type": "multipart/form-data; boundary=x"}

        await refused(stack, status=413, code="upload_too_large", content=body(), headers=headers)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"--x\r\nnonsense",
            b'--x\r\nContent-Disposition: form-data; name="archive"; filename="a.zip"\r\n\r\nhalf',
            b'--x\r\nContent-Disposition: form-data; name="other"\r\n\r\n1\r\n--x--\r\n',
            b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\n' + b"n" * 5000 + b"\r\n--x--\r\n",
            b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\nn\r\n' * 40 + b"--x--\r\n",
        ],
    )
    async def test_a_malformed_body(self, stack, content):
        headers = {"content-type": "multipart/form-data; boundary=x"}

        await refused(stack, status=400, code="malformed_upload", content=content, headers=headers)

    async def test_a_body_of_another_kind(self, stack):
        await refused(stack, status=400, code="malformed_upload", content=b"a", headers={"content-type": "text/plain"})

    async def test_a_boundary_longer_than_any_parser_takes(self, stack):
        headers = {"content-type": f"multipart/form-data; boundary={'x' * 300}"}
        await refused(stack, status=400, code="malformed_upload", content=b"--x", headers=headers)


class TestReferences:
    @pytest.mark.parametrize(
        ("body", "code"),
        [
            ({"source": {"path": "/etc"}}, "path_not_allowed"),
            ({"source": {"path": "{allowed}/../secret"}}, "path_not_allowed"),
            ({"source": {"path": "{allowed}/link"}}, "path_not_allowed"),
            ({"source": {"path": "{allowed}/absent"}}, "path_not_found"),
            ({"source": {"hub": "no-owner"}}, "invalid_hub_reference"),
            ({"source": {"hub": "https://evil.example/a"}}, "invalid_hub_reference"),
            ({"source": {"hub": "owner/../x"}}, "invalid_hub_reference"),
            ({"source": {"hub": "o/n", "path": "/p"}}, "invalid_request"),
            ({"source": {"hub": "o/n", "url": "https://h/a.zip"}}, "invalid_request"),
            ({"source": {"object": "memory://pool-of-others/a"}}, "object_store_not_allowed"),
            ({"source": {"object": "memory://pool/../a"}}, "invalid_object_reference"),
            ({"source": {"object": "file:///etc"}}, "invalid_object_reference"),
            ({"source": {"url": "https://files.example/a.zip"}}, "url_not_allowed"),
            ({"source": {"url": "http://169.254.169.254/"}}, "url_not_allowed"),
            ({"source": {}}, "invalid_request"),
            ({"source": {"hub": "o/n"}, "surprise": 1}, "invalid_request"),
            ({"source": {"hub": "o/n"}, "samples": [1]}, "invalid_request"),
        ],
    )
    async def test_a_bad_reference(self, tmp_path, body, code):
        allowed, secret = tmp_path / "allowed", tmp_path / "secret"
        allowed.mkdir()
        secret.mkdir()
        (allowed / "link").symlink_to(secret)
        stack = RegistryStack(tmp_path / "data", allowed=(allowed,))
        text = json.dumps(body).replace("{allowed}", str(allowed))

        await refused(stack, status=400, code=code, content=text, headers={"content-type": "application/json"})

    async def test_an_empty_sample(self, tmp_path):
        body = {"source": {"hub": "o/n"}, "samples": [" "]}

        await refused(RegistryStack(tmp_path), status=422, code="invalid_samples", json=body)

    async def test_a_body_that_is_no_json(self, stack):
        headers = {"content-type": "application/json"}

        await refused(stack, status=400, code="invalid_request", content=b"{", headers=headers)
