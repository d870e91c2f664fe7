"""Limits of one engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """What an engine may hold at once. Validated on construction; `ValueError` names the field."""

    max_num_seqs: int = 16
    """Requests that run at the same time: slots of the KV cache."""
    max_model_len: int = 2048
    """Prompt plus completion tokens of one request: length of a slot."""
    max_num_batched_tokens: int = 512
    """Tokens of one step, decode tokens and prefill chunks together. At least `max_num_seqs`, so that every running
    request can always advance."""
    max_waiting: int = 256
    """Requests that may wait for a slot or for their ROCs; one more is refused with `QueueFull`."""
    roc_pool_bytes: int = 1 << 30
    """Device memory for rank-one components."""
    num_loader_threads: int = 2
    """Threads that bring components from the host tier, or from the registry, to the device."""

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_waiting", "roc_pool_bytes", "num_loader_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.max_model_len < 2:
            raise ValueError(f"max_model_len must hold one prompt and one completion token, not {self.max_model_len}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) is below max_num_seqs ({self.max_num_seqs})"
            )
