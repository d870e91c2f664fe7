from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from hilora.errors import InvalidInput
from services.common import kept_encoders
from services.common.keep_encoder import keep_encoder, main
from services.common.kept_encoders import KEPT_ENCODERS_FOLDER, KeptEncoders
from services.common.openvino_conversion import EXAMPLES, ConvertedEncoder, ModelTokenizer, convert_encoder
from services.common.openvino_encoder import OpenVinoEncoder
from services.common.sequence_encoder import EncoderBackend, SentenceTransformerEncoder
from services.registry.settings import RegistrySettings
from services.router.settings import RouterSettings
from tests.builders.encoders import small_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A small encoder of the shipped one's kind."""
    return small_encoder(tmp_path_factory.mktemp("encoders") / "small")


@pytest.fixture(scope="module")
def converted(encoder) -> ConvertedEncoder:
    return convert_encoder(SentenceTransformer(str(encoder), device="cpu"))


@pytest.fixture(scope="module")
def filled(encoder, converted, tmp_path_factory) -> Path:
    """A folder with the encoder in it."""
    folder = tmp_path_factory.mktemp("filled")
    KeptEncoders(folder).keep(encoder, converted)
    return folder


@pytest.fixture
def folder(filled, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(filled, tmp_path / "kept"))


def place_of(folder: Path) -> Path:
    (place,) = folder.iterdir()
    return place


class TestKeeping:
    def test_what_was_kept_is_found(self, encoder, converted, filled):
        found = KeptEncoders(filled).find(encoder)

        assert found is not None
        assert (found.prompt, found.embedding_dim) == (converted.prompt, converted.embedding_dim)
        np.testing.assert_array_equal(found.expected_BE, converted.expected_BE)
        vectors = OpenVinoEncoder(found, num_threads=1).encode(EXAMPLES)
        np.testing.assert_allclose(vectors, converted.expected_BE, atol=2e-6)

    def test_nothing_kept_is_nothing_found_and_nothing_made(self, encoder, tmp_path):
        assert KeptEncoders(tmp_path / "none").find(encoder) is None
        assert not (tmp_path / "none").exists()

    @pytest.mark.parametrize("file", ["modules.json", "config.json", "1_Pooling/config.json", "model.safetensors"])
    def test_another_encoder_is_not_taken_for_it(self, encoder, folder, tmp_path, file):
        other = Path(shutil.copytree(encoder, tmp_path / encoder.name))
        assert KeptEncoders(folder).find(other) is not None
        with (other / file).open("ab") as stream:
            stream.write(b" ")

        assert KeptEncoders(folder).find(other) is None

    @pytest.mark.parametrize("file", ["graph.xml", "graph.bin", "tokenizer.json", "manifest.json"])
    @pytest.mark.parametrize("damage", ["cut", "missing", "changed"])
    def test_what_was_damaged_is_passed_over_and_kept_anew(self, encoder, converted, folder, file, damage):
        damaged = place_of(folder) / file
        content = bytearray(damaged.read_bytes())
        if damage == "missing":
            damaged.unlink()
        elif damage == "cut":
            damaged.write_bytes(content[: len(content) // 2])
        else:
            content[len(content) // 2] ^= 0xFF
            damaged.write_bytes(content)
        kept = KeptEncoders(folder)

        found = kept.find(encoder)
        if file == "manifest.json" and damage == "changed" and found is not None:
            # One of the vectors that a compiled encoder is compared with, or a digit of a hash.
            with pytest.raises(InvalidInput):
                OpenVinoEncoder(found, num_threads=1)
        else:
            assert found is None

        kept.keep(encoder, converted)
        assert kept.find(encoder) is not None
        assert [place.name for place in folder.iterdir()] == [place_of(folder).name]

    def test_a_tokeniser_that_needs_the_model_is_not_kept(self, encoder, converted, tmp_path):
        with_model = ConvertedEncoder(
            graph=converted.graph,
            tokenizer=ModelTokenizer(object()),
            prompt="",
            embedding_dim=16,
            expected_BE=converted.expected_BE,
        )
        KeptEncoders(tmp_path).keep(encoder, with_model)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("fault", [OSError(28, "no space left"), RuntimeError("not this graph")])
    def test_where_it_cannot_be_written_nothing_is_left_and_nothing_raised(
        self, encoder, converted, tmp_path, monkeypatch, fault
    ):
        def fails(*_):
            raise fault

        monkeypatch.setattr(kept_encoders, "_put_in_place", fails)
        KeptEncoders(tmp_path).keep(encoder, converted)

        assert not list(tmp_path.iterdir())

    def test_a_place_that_is_a_file_is_nothing_raised(self, encoder, converted, tmp_path):
        (tmp_path / "file").write_text("")
        KeptEncoders(tmp_path / "file").keep(encoder, converted)
        assert KeptEncoders(tmp_path / "file").find(encoder) is None

    def test_processes_that_keep_at_once_leave_one_whole(self, encoder, converted, filled, tmp_path, monkeypatch):
        def write(folder: Path, *_):
            shutil.copytree(place_of(filled), folder)

        # All but what takes long, so that they meet in every order.
        monkeypatch.setattr(kept_encoders, "_write", write)
        said = []
        monkeypatch.setattr(kept_encoders._log, "info", lambda *args, **named: said.append((args, named)))
        kept = KeptEncoders(tmp_path)

        def keep_often():
            for _ in range(25):
                kept.keep(encoder, converted)

        threads = [threading.Thread(target=keep_often) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert not said
        assert kept.find(encoder) is not None
        assert [place.name for place in tmp_path.iterdir()] == [place_of(filled).name]

    def test_old_ones_and_abandoned_ones_are_removed(self, encoder, converted, folder):
        names = [f"old-{number}" for number in range(5)]
        for age, name in enumerate(names):
            (folder / name).mkdir()
            (folder / name / "manifest.json").write_text("{}")
            os.utime(folder / name / "manifest.json", (1e9 - age, 1e9 - age))
        for name, age in ((".partial-old", 1e9), (".partial-new", None)):
            (folder / name).mkdir()
            if age:
                os.utime(folder / name, (age, age))
        (folder / "somebody's").mkdir()
        own = next(place.name for place in folder.iterdir() if place.name.startswith(encoder.name))

        KeptEncoders(folder).keep(encoder, converted)

        left = {place.name for place in folder.iterdir()}
        assert left == {own, *names[:3], ".partial-new", "somebody's"}


class TestAService:
    def test_that_finds_its_encoder_imports_no_torch(self, encoder, filled):
        script = (
            "import sys\n"
            "from pathlib import Path\n"
            "import services.router.__main__\n"
            "from services.common.sequence_encoder import EncoderBackend, SentenceTransformerEncoder\n"
            "encoder, folder = sys.argv[1:]\n"
            "made = SentenceTransformerEncoder(encoder, backend=EncoderBackend.AUTO, kept_folder=Path(folder))\n"
            "made.encode(['one', 'two and more']); made.count_tokens(['one'])\n"
            "print(made.backend, [name for name in ('torch', 'transformers', 'scipy') if name in sys.modules])"
        )
        command = [sys.executable, "-c", script, str(encoder), str(filled)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        assert done.stdout.split("\n")[-2] == "openvino []"

    def test_that_could_not_convert_says_what_to_do(self, encoder, tmp_path):
        script = (
            "import sys; sys.modules['sentence_transformers'] = None\n"
            "from pathlib import Path\n"
            "from services.common.sequence_encoder import EncoderBackend, SentenceTransformerEncoder\n"
            "try: SentenceTransformerEncoder(sys.argv[1], backend=EncoderBackend.AUTO, kept_folder=Path(sys.argv[2]))\n"
            "except Exception as error: print(error.code, error.remedy)"
        )
        command = [sys.executable, "-c", script, str(encoder), str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        assert done.stdout.startswith("encoder_not_kept ") and "services.common.keep_encoder" in done.stdout

    def test_that_finds_other_vectors_converts_again_and_keeps_that(self, encoder, folder):
        manifest = place_of(folder) / "manifest.json"
        said = json.loads(manifest.read_text())
        said["expected"] = (-np.array(said["expected"])).tolist()
        manifest.write_text(json.dumps(said))

        loaded = SentenceTransformerEncoder(
            str(encoder), backend=EncoderBackend.AUTO, num_threads=1, kept_folder=folder
        )

        assert loaded.backend is EncoderBackend.OPENVINO
        assert json.loads((place_of(folder) / "manifest.json").read_text())["expected"][0][0] == -said["expected"][0][0]

    def test_on_torch_keeps_nothing(self, encoder, tmp_path):
        SentenceTransformerEncoder(str(encoder), backend=EncoderBackend.TORCH, kept_folder=tmp_path)
        assert not list(tmp_path.iterdir())

    def test_knows_the_setting(self, monkeypatch, tmp_path):
        assert RouterSettings().kept_encoders_dir == KEPT_ENCODERS_FOLDER
        for service in ("ROUTER", "REGISTRY"):
            monkeypatch.setenv(f"HILORA_{service}_KEPT_ENCODERS_DIR", str(tmp_path))
        registry = RegistrySettings(
            base_model="base", data_dir=tmp_path, redis_url="redis://127.0.0.1:1", allow_anonymous_admin=True
        )
        assert RouterSettings().kept_encoders_dir == registry.kept_encoders_dir == tmp_path

    def test_without_a_home_goes_on(self, encoder, monkeypatch):
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setattr("pwd.getpwuid", lambda _: {}[0])
        assert KeptEncoders(KEPT_ENCODERS_FOLDER).find(encoder) is None


class TestTheCommand:
    def test_keeps_an_encoder_and_says_its_id(self, encoder, tmp_path, capsys):
        assert main([str(encoder), str(tmp_path)]) == 0
        assert capsys.readouterr().out.startswith("small:")
        assert KeptEncoders(tmp_path).find(encoder) is not None

    def test_says_what_it_wants(self, capsys):
        assert main([]) == 2
        assert "keep_encoder ENCODER FOLDER" in capsys.readouterr().err

    def test_says_when_it_could_not(self, encoder, tmp_path, capsys):
        (tmp_path / "file").write_text("")
        with pytest.raises(InvalidInput) as caught:
            keep_encoder(str(encoder), tmp_path / "file")
        assert caught.value.code == "encoder_not_kept"
        assert main([str(tmp_path / "none"), str(tmp_path)]) == 1
        assert "unknown_encoder" in capsys.readouterr().err
