"""A sentence encoder's transformer run by OpenVINO: the same vectors, from half of a CPU's time for a short text.

Tokeniser, pooling and normalisation stay those of sentence-transformers; only the transformer between them is
replaced. It computes in float32, so its vectors are torch's up to the order of sums (some 1e-7), and statistics made
with one backend serve the other.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any, cast

from hilora.errors import InvalidInput

_EXAMPLES = ["Two short texts of different length show which sizes may change.", "Two."]
_MOST_DIFFERENCE = 1e-4
"""Of a coordinate of a unit vector; what is right differs by some 1e-7."""


def run_by_openvino(sentence_model: Any, *, num_threads: int | None) -> None:
    """Put a compiled copy of the transformer in its place; takes seconds.

    Args:
        sentence_model: a loaded `SentenceTransformer` on the CPU; changed.
        num_threads: CPU threads of a pass; None leaves the choice to OpenVINO.

    Raises:
        InvalidInput: `encoder_backend_unavailable`, if OpenVINO is not installed, cannot convert this model, or gives
            other vectors than torch; the model is then as it was.
    """
    import torch  # seconds of import, as of the encoder itself

    # The converter reports its use to its makers, unless it finds this package missing; a service tells nobody.
    sys.modules.setdefault("openvino_telemetry", cast("Any", None))
    try:
        import openvino
    except ImportError as error:
        raise _unavailable("OpenVINO is not installed.", "pip install openvino") from error
    transformer = sentence_model[0]
    inner = getattr(transformer, "auto_model", None)
    children = dict(transformer.named_children()) if hasattr(transformer, "named_children") else {}
    name = next((name for name, module in children.items() if module is inner), None)
    if name is None or inner is None:
        raise _unavailable(f"OpenVINO cannot stand in for a {type(transformer).__name__}.", "Use the backend torch.")
    example = transformer.tokenizer(_EXAMPLES, padding=True, return_tensors="pt")
    expected = sentence_model.encode(_EXAMPLES, normalize_embeddings=True, show_progress_bar=False)
    try:
        # Tracing warns of conditions on sizes; what they guard is tested with texts of many lengths and batches.
        with torch.inference_mode(), warnings.catch_warnings(action="ignore"):
            graph = openvino.convert_model(inner.eval(), example_input=dict(example))
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if num_threads is not None:
            options["INFERENCE_NUM_THREADS"] = num_threads
        compiled = openvino.Core().compile_model(graph, "CPU", options)
        setattr(transformer, name, _compiled_module(compiled, inner.config))
        found = sentence_model.encode(_EXAMPLES, normalize_embeddings=True, show_progress_bar=False)
    except Exception as error:  # a model of anybody's, in a converter of others: it may raise anything
        setattr(transformer, name, inner)
        raise _unavailable(f"OpenVINO cannot run this encoder: {error}", "Use the backend torch.") from error
    if not abs(found - expected).max() <= _MOST_DIFFERENCE:
        setattr(transformer, name, inner)
        raise _unavailable("OpenVINO gives other vectors than torch for this encoder.", "Use the backend torch.")


def _compiled_module(compiled: Any, config: Any) -> Any:
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    names = {port.get_any_name() for port in compiled.inputs}

    class Compiled(torch.nn.Module):
        """One request at a time, as the encoder's lock has it."""

        def __init__(self) -> None:
            super().__init__()
            self.config = config
            self._request = compiled.create_infer_request()

        def forward(self, **inputs: torch.Tensor) -> BaseModelOutput:
            given = {name: tensor.numpy() for name, tensor in inputs.items() if name in names}
            answer = self._request.infer(given, share_inputs=True)
            return BaseModelOutput(last_hidden_state=torch.from_numpy(answer[0]))

    return Compiled()


def _unavailable(message: str, remedy: str) -> InvalidInput:
    return InvalidInput(message, code="encoder_backend_unavailable", remedy=remedy, place="encoder_backend")
