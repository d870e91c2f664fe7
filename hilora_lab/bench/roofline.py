"""What memory bandwidth alone allows a decode step: the share of the base's speed that is left when ROCs are read, too.

A step reads the weights and the keys and values of its sequences once; ROC rows come on top. Candidates' down-vectors
are all read, up-vectors of those that act only. Rows that several requests share are read once.
"""

from __future__ import annotations

from dataclasses import dataclass

from hilora_lab.bench.workload import Features
from services.worker.models.loader import LoadedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReads:
    """Bytes that a decode step has to read."""

    base_bytes: int
    """Weights, and keys and values of all sequences."""
    roc_bytes: int

    @property
    def kept_share(self) -> float:
        """Speed with ROCs over speed without, if reading is all that takes time."""
        return self.base_bytes / (self.base_bytes + self.roc_bytes)


def step_reads(
    loaded: LoadedModel,
    features: Features,
    *,
    batch_size: int,
    context_len: int,
    num_candidate_rows: int,
    num_active_rows: int,
) -> StepReads:
    """What one decode step reads.

    Args:
        loaded: the base.
        features: the layers that adapters target.
        batch_size: sequences of the step.
        context_len: positions of each.
        num_candidate_rows: different ROCs among the candidates of all requests.
        num_active_rows: different ROCs that act, at most.
    """
    itemsize = loaded.dtype.itemsize
    kv_bytes = 2 * loaded.num_layers * loaded.num_key_value_heads * loaded.head_dim * context_len * itemsize
    a_bytes = itemsize * sum(num_in for _, num_in in features.values())
    b_bytes = itemsize * sum(num_out for num_out, _ in features.values())
    return StepReads(
        base_bytes=_weight_bytes(loaded) + batch_size * kv_bytes,
        roc_bytes=num_candidate_rows * a_bytes + num_active_rows * b_bytes,
    )


def _weight_bytes(loaded: LoadedModel) -> int:
    """All weights but an input embedding of its own, of which a step reads a few rows."""
    total = sum(parameter.nbytes for parameter in loaded.model.parameters())
    words, logits = loaded.model.get_input_embeddings().weight, loaded.model.get_output_embeddings().weight
    return total - (0 if words is logits else words.nbytes)
