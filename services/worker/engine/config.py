"""Limits of one engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """What an engine may hold at once. Validated on construction; `ValueError` names the field."""

    max_num_seqs: int = 16
    """Requests that run at the same time."""
    max_model_len: int = 2048
    """Prompt plus completion tokens of one request."""
    max_num_batched_tokens: int = 512
    """Tokens of one step, decode tokens and prefill chunks together. At least `max_num_seqs`, so that every running
    request can always advance."""
    max_waiting: int = 256
    """Requests that may wait for a slot or for their ROCs; one more is refused with `QueueFull`."""
    kv_layout: Literal["auto", "slots", "pages"] = "auto"
    """How keys and values lie in memory, see `kv_cache`. `auto` is pages where torch has a kernel that reads them."""
    kv_cache_bytes: int | None = None
    """Limit of the memory for keys and values, of which at least one request of `max_model_len` must fit. None is room
    for `max_num_seqs` of them."""
    enable_prefix_cache: bool = False
    """Whether keys and values of finished requests serve later ones that begin alike and have the same plan."""
    roc_pool_bytes: int = 1 << 30
    """Device memory for rank-one components."""
    enable_lora: bool = True
    """Whether requests may bring ROCs. Without, the model's layers are left as they are, and plans with ROCs refused:
    what an engine costs that cannot do more than serve its base."""
    num_loader_threads: int = 4
    """Adapters that are brought to main memory at the same time. One that hangs is replaced after its deadline."""
    component_timeout_seconds: float = 120.0
    """A request whose components are not in main memory after so long fails."""
    max_placing_seconds: float = 2.0
    """A request for whose components the pool has no room gets it after so long, as soon as running requests end, even
    if others would go on using what is there."""

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_waiting", "roc_pool_bytes", "num_loader_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.kv_cache_bytes is not None and self.kv_cache_bytes < 1:
            raise ValueError(f"kv_cache_bytes must be at least 1, not {self.kv_cache_bytes}")
        if self.max_model_len < 2:
            raise ValueError(f"max_model_len must hold one prompt and one completion token, not {self.max_model_len}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) is below max_num_seqs ({self.max_num_seqs})"
            )
