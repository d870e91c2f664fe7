"""What every process of a worker sets up alike: the group it belongs to, its model, and the engine's limits."""

from __future__ import annotations

from services.worker.engine.config import EngineConfig
from services.worker.models.loader import LoadedModel, load_model
from services.worker.models.tensor_parallel import ParallelGroup, join_parallel_group
from services.worker.settings import ProcessPlace, WorkerSettings

_MAX_DEFAULT_MODEL_LEN = 4096
"""A model's own context can be longer than memory; more than this has to be asked for."""


def join_group(settings: WorkerSettings, place: ProcessPlace) -> ParallelGroup | None:
    """Meet the other processes of the worker; None if this is the only one.

    Raises:
        InvalidInput: `invalid_device`.
    """
    if place.world_size == 1:
        return None
    return join_parallel_group(
        rank=place.rank,
        size=place.world_size,
        local_rank=place.local_rank,
        device=settings.device,
        step_timeout_seconds=settings.max_step_seconds,
    )


def load_base(settings: WorkerSettings, group: ParallelGroup | None) -> LoadedModel:
    """The base model, or this process's shard of it.

    Raises:
        InvalidInput: see `load_model`.
    """
    if settings.num_threads is not None:
        import torch

        torch.set_num_threads(settings.num_threads)
    return load_model(
        settings.base_model,
        name=settings.base_model_name,
        device=settings.device,
        dtype=settings.dtype,
        quantization=settings.quantization,
        group=group,
    )


def engine_config(settings: WorkerSettings, loaded: LoadedModel) -> EngineConfig:
    """The limits of an engine over the model.

    Raises:
        ValueError: they contradict one another.
    """
    return EngineConfig(
        max_num_seqs=settings.max_num_seqs,
        max_model_len=settings.max_model_len or min(loaded.max_position_embeddings, _MAX_DEFAULT_MODEL_LEN),
        max_num_batched_tokens=settings.max_num_batched_tokens,
        max_waiting=settings.max_waiting,
        max_prompt_tokens_beside_decodes=settings.max_prompt_tokens_beside_decodes,
        max_queue_seconds=settings.max_queue_seconds,
        priority_ageing_seconds=settings.priority_ageing_seconds,
        max_preemptions=settings.max_preemptions,
        max_step_seconds=settings.max_step_seconds,
        kv_layout=settings.kv_layout,
        kv_cache_bytes=settings.kv_cache_bytes,
        enable_prefix_cache=settings.enable_prefix_cache,
        roc_pool_bytes=settings.roc_pool_bytes,
        gate_bytes=settings.gate_bytes,
        max_explained_tokens=settings.max_explained_tokens,
        num_loader_threads=settings.num_loader_threads,
        component_timeout_seconds=settings.component_timeout_seconds,
        max_placing_seconds=settings.max_placing_seconds,
    )
