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
    max_prompt_tokens_beside_decodes: int | None = None
    """Prompt tokens of a step in which answers are written, too. Fewer keep answers smooth, more read prompts faster;
    None is all that `max_num_batched_tokens` leaves."""
    max_queue_seconds: float | None = None
    """A request that has not begun to run after so long fails; None waits for ever."""
    priority_ageing_seconds: float = 10.0
    """A request counts as one priority step more urgent for each time it has been there for so long."""
    max_preemptions: int = 3
    """How often a request may have to give its memory back; after that it gets room for all that it may come to. 0
    gives every request such room at once."""
    max_step_seconds: float = 300.0
    """A step that has not returned after so long is stuck: the engine takes no requests until it returns. A first step
    may have kernels to compile."""
    kv_layout: Literal["auto", "slots", "pages"] = "auto"
    """How keys and values lie in memory, see `kv_cache`. `auto` is pages where torch has a kernel that reads them."""
    kv_cache_bytes: int | None = None
    """Limit of the memory for keys and values, of which at least one request of `max_model_len` must fit. None is room
    for `max_num_seqs` of them."""
    enable_prefix_cache: bool = False
    """Whether keys and values of finished requests serve later ones that begin alike and have the same plan."""
    roc_pool_bytes: int = 1 << 30
    """Device memory for rank-one components."""
    gate_bytes: int = 256 << 20
    """Device memory for learned gates."""
    enable_lora: bool = True
    """Whether requests may bring ROCs. Without, the model's layers are left as they are, and plans with ROCs refused:
    what an engine costs that cannot do more than serve its base."""
    enable_cuda_graphs: bool = True
    """Whether decode steps are captured and replayed, where the device and the kernels allow it."""
    max_explained_tokens: int = 4096
    """Prompt plus completion tokens of a request that asks which ROCs act: they are read a second time, beside a KV
    cache of their own. 0 refuses all of them."""
    num_loader_threads: int = 4
    """Adapters that are brought to main memory at the same time. One that hangs is replaced after its deadline."""
    component_timeout_seconds: float = 120.0
    """A request whose components are not in main memory after so long fails."""
    max_placing_seconds: float = 2.0
    """A request for whose components the pool has no room gets it after so long, as soon as running requests end, even
    if others would go on using what is there."""

    def __post_init__(self) -> None:
        for name in (
            "max_num_seqs",
            "max_num_batched_tokens",
            "max_waiting",
            "roc_pool_bytes",
            "gate_bytes",
            "num_loader_threads",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("priority_ageing_seconds", "max_step_seconds", "component_timeout_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        for name in ("max_preemptions", "max_explained_tokens", "max_placing_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        if self.max_prompt_tokens_beside_decodes is not None and self.max_prompt_tokens_beside_decodes < 1:
            raise ValueError(
                f"max_prompt_tokens_beside_decodes must be at least 1, not {self.max_prompt_tokens_beside_decodes}"
            )
        if self.max_queue_seconds is not None and self.max_queue_seconds <= 0:
            raise ValueError(f"max_queue_seconds must be positive, not {self.max_queue_seconds}")
        if self.kv_cache_bytes is not None and self.kv_cache_bytes < 1:
            raise ValueError(f"kv_cache_bytes must be at least 1, not {self.kv_cache_bytes}")
        if self.max_model_len < 2:
            raise ValueError(f"max_model_len must hold one prompt and one completion token, not {self.max_model_len}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) is below max_num_seqs ({self.max_num_seqs})"
            )
