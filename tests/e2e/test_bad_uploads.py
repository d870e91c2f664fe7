"""Bad input over REST to the serving system: refused with a code and a remedy, nothing stored, nobody harmed."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile

import httpx
import pytest

from tests.builders.patience import patient
from tests.builders.system import TESTBED, chosen_adapters, lines_of, task_lines, wait_until

TASK = "reverse-letters"
FOLDER = TESTBED / "adapters" / TASK
CONFIG = (FOLDER / "adapter_config.json").read_bytes() if FOLDER.is_dir() else b""
WEIGHTS = (FOLDER / "adapter_model.safetensors").read_bytes() if FOLDER.is_dir() else b""
SAMPLES = "".join(json.dumps({"text": f"say it {number}"}) + "\n" for number in range(5)).encode()


def tensors(header: dict, data: bytes) -> bytes:
    """A safetensors file with any header."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def parts_of(weights: bytes) -> tuple[dict, bytes]:
    length = int.from_bytes(weights[:8], "little")
    return json.loads(weights[8 : 8 + length]), weights[8 + length :]


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(member: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        config = tarfile.TarInfo("adapter_config.json")
        config.size = len(CONFIG)
        archive.addfile(config, io.BytesIO(CONFIG))
        archive.addfile(member)
    return buffer.getvalue()


def symlink() -> bytes:
    member = tarfile.TarInfo("adapter_model.safetensors")
    member.type = tarfile.SYMTYPE
    member.linkname = "/etc/passwd"
    return tarred(member)


def with_nan() -> bytes:
    header, data = parts_of(WEIGHTS)
    name = next(key for key in header if key != "__metadata__")
    start = header[name]["data_offsets"][0]
    nan = {"F16": b"\x00\x7e", "BF16": b"\xc0\x7f", "F32": b"\x00\x00\xc0\x7f"}[header[name]["dtype"]]
    return tensors(header, data[:start] + nan + data[start + len(nan) :])


def of_another_base() -> bytes:
    """Every factor of the down projections twice as wide as the base's inputs."""
    header, _ = parts_of(WEIGHTS)
    offset, wide = 0, {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape = [entry["shape"][0], entry["shape"][1] * (2 if "lora_A" in name else 1)]
        size = shape[0] * shape[1] * 4
        wide[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    return tensors(wide, b"\x00\x00\x80\x3f" * (offset // 4))


def without_effect() -> bytes:
    header, data = parts_of(WEIGHTS)
    return tensors(header, bytes(len(data)))


def lying_header() -> bytes:
    header, data = parts_of(WEIGHTS)
    name = next(key for key in header if key != "__metadata__")
    header[name]["shape"] = [8, 2**40]
    return tensors(header, data)


def files(config=None, weights=None, samples=None):
    return [
        ("files", ("adapter_config.json", CONFIG if config is None else config)),
        ("files", ("adapter_model.safetensors", WEIGHTS if weights is None else weights)),
        ("samples", ("samples.jsonl", SAMPLES if samples is None else samples)),
    ]


def archive(name, data):
    return [("archive", (name, data)), ("samples", ("samples.jsonl", SAMPLES))]


BAD_UPLOADS = {
    "a path out of the archive": lambda: archive("a.zip", zipped({"../adapter_config.json": CONFIG})),
    "a symlink": lambda: archive("a.tar.gz", symlink()),
    "a zip bomb": lambda: archive(
        "a.zip", zipped({"adapter_config.json": CONFIG, "adapter_model.safetensors": bytes(300_000_000)})
    ),
    "a pickle": lambda: archive("a.zip", zipped({"adapter_config.json": CONFIG, "adapter_model.bin": b"\x80\x04."})),
    "a truncated file": lambda: files(weights=WEIGHTS[: len(WEIGHTS) // 2]),
    "a truncated header": lambda: files(weights=WEIGHTS[:20]),
    "a lying header": lambda: files(weights=lying_header()),
    "nan weights": lambda: files(weights=with_nan()),
    "another base's shapes": lambda: files(weights=of_another_base()),
    "no effective module": lambda: files(weights=without_effect()),
    "an empty samples file": lambda: files(samples=b""),
    "a config that is no JSON": lambda: files(config=b"{"),
}


class TestBadUploads:
    @pytest.mark.parametrize("kind", BAD_UPLOADS)
    def test_is_refused_with_a_code_and_a_remedy(self, system, kind):
        before = set((system.data_dir).rglob("manifest.json"))

        answer = httpx.post(
            f"{system.url}/v1/adapters", data={"name": "bad"}, files=BAD_UPLOADS[kind](), timeout=patient(60)
        )

        if answer.status_code == 202:
            job = answer.json()["job_id"]
            state = wait_until(
                lambda: (found := system.get(f"/v1/jobs/{job}"))["state"] in {"FAILED", "READY"} and found,
                timeout_seconds=30,
                what="the job ended",
            )
            assert state["state"] == "FAILED"
            error = state["error"]
        else:
            assert 400 <= answer.status_code < 500, answer.text
            error = answer.json()["error"]
        assert error["code"]
        assert error["remedy"]
        assert "bad" not in system.adapter_names()
        assert set((system.data_dir).rglob("manifest.json")) == before

    def test_the_service_is_unharmed(self, system):
        line = lines_of(task_lines("fit")[0]["task"])[0]

        assert line["task"] in chosen_adapters(system.complete(line["prompt"]))
