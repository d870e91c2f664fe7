"""What an engine says about its load."""

from __future__ import annotations

from dataclasses import dataclass

from services.worker.engine.output.events import EngineEvent, Failed, Finished, FinishReason
from services.worker.lora.pool.pool_stats import RocPoolStats


@dataclass(kw_only=True, slots=True)
class EngineCounters:
    """Totals since the engine was made."""

    num_prompt_tokens: int = 0
    num_generation_tokens: int = 0
    num_requests_finished: int = 0
    num_requests_failed: int = 0
    num_requests_aborted: int = 0
    num_steps: int = 0
    """Forward passes; a batch that was run again request by request is one."""
    num_preemptions: int = 0
    """How often a running request had to give its memory back, to be read again later."""
    num_queue_timeouts: int = 0
    """Requests that waited for longer than they may; they count as failed, too."""
    num_cached_tokens: int = 0
    """Of the prompts' tokens, those whose keys and values were in the prefix cache."""
    queue_seconds: float = 0.0
    """What all requests together waited from their submission until they ran."""

    def count_end(self, event: EngineEvent) -> None:
        """Count a request by its terminal event."""
        if isinstance(event, Failed):
            self.num_requests_failed += 1
        elif isinstance(event, Finished) and event.finish_reason is FinishReason.ABORT:
            self.num_requests_aborted += 1
        else:
            self.num_requests_finished += 1


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStats:
    """A snapshot of an engine's load."""

    num_running: int
    num_waiting: int
    max_num_seqs: int
    max_model_len: int
    kv_cache_usage: float
    resident_adapter_ids: tuple[str, ...]
    roc_pool_used_bytes: int
    roc_pool_capacity_bytes: int
    roc_pool: RocPoolStats
    """The device tier of components, in detail."""
    is_draining: bool
    """Whether no new requests are taken, since the engine is about to stop."""
    is_stuck: bool
    """Whether a step does not return; no new requests are taken until it does."""
    is_device_lost: bool
    """Whether the device is gone for this process, which will take no requests any more."""
    counters: EngineCounters
