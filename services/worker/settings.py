"""The worker's configuration: environment variables `HILORA_WORKER_*`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from hilora.adapter import RocBasis
from services.common.tls_settings import TlsServiceSettings


class WorkerSettings(TlsServiceSettings):
    """Everything an operator can set on a worker."""

    model_config = SettingsConfigDict(env_prefix="HILORA_WORKER_")

    rpc_host: str = "127.0.0.1"
    """Address the gRPC server binds."""
    rpc_port: int = Field(default=50053, ge=0, le=65535)
    """Port of the gRPC server; 0 takes a free one."""
    registry_address: str = "127.0.0.1:50052"
    """`host:port` of the registry's gRPC server, which is followed."""
    redis_url: SecretStr | None = None
    """`redis://`, `rediss://` or `unix:///socket?db=0`, where this worker registers itself for routers whose worker
    address is `redis`; by default it does not. Takes the extra `worker-redis`."""
    advertise_address: str | None = None
    """`host:port` at which routers reach this worker; needed where it registers itself."""
    base_model: str
    """The base model: a folder with config, safetensors weights and tokenizer, or a hub id."""
    base_model_name: str | None = None
    """Public name of the base model; by default the folder's name, or the hub id."""
    device: str = "auto"
    """`auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """Type of weights, cache and components; `auto` is float32 on a CPU and bfloat16 on a GPU."""
    quantization: Literal["bitsandbytes-int8", "bitsandbytes-nf4"] | None = None
    """What the base's weights are quantised to while loading; by default they stay as they are. A checkpoint that is
    quantised already needs none."""
    max_num_seqs: int = Field(default=16, ge=1)
    """Requests that run at the same time."""
    max_model_len: int | None = Field(default=None, ge=2)
    """Prompt plus completion tokens of one request; by default the model's own context, at most 4096."""
    max_num_batched_tokens: int = Field(default=512, ge=1)
    """Tokens of one step; at least `max_num_seqs`. Larger reads prompts faster, smaller keeps answers smooth."""
    max_waiting: int = Field(default=256, ge=1)
    """Requests that may wait; one more is refused with 429."""
    max_prompt_tokens_beside_decodes: int | None = Field(default=None, ge=1)
    """Prompt tokens of a step in which answers are written, too; by default all that `max_num_batched_tokens` leaves.
    Fewer keep answers smooth while long prompts come in."""
    max_queue_seconds: float | None = Field(default=None, gt=0)
    """A request that has not begun to run after this time fails with 429; by default it waits for ever."""
    priority_ageing_seconds: float = Field(default=10.0, gt=0)
    """A request counts as one priority step more urgent each time it has been there for so long."""
    max_preemptions: int = Field(default=3, ge=0)
    """How often a request may have to give its KV memory back; after that it gets room for all that it may come to. 0
    gives every request such room at once."""
    max_step_seconds: float = Field(default=300.0, gt=0)
    """A step that has not returned after this time is stuck: health says NOT_SERVING until it returns."""
    kv_layout: Literal["auto", "slots", "pages"] = "auto"
    """How keys and values lie in memory: one slot a request, or pages. `auto` is pages on a GPU whose torch has a
    kernel that reads them, slots elsewhere."""
    kv_cache_bytes: int | None = Field(default=None, ge=1)
    """Limit of the memory for keys and values; by default room for `max_num_seqs` requests of `max_model_len`."""
    enable_prefix_cache: bool = False
    """Whether keys and values of finished requests serve later ones that begin alike and have the same plan."""
    roc_pool_bytes: int = Field(default=1 << 30, ge=1)
    """Device memory for rank-one components."""
    gates_dir: Path | None = None
    """Folder of learned gates; by default there are none, and plans that name one are refused."""
    gate_bytes: int = Field(default=256 << 20, ge=1)
    """Device memory for learned gates."""
    host_cache_bytes: int = Field(default=4 << 30, ge=0)
    """Main memory for components, whether they are on the device or not."""
    merged_cache_bytes: int = Field(default=256 << 20, ge=0)
    """Main memory for adapters that are merged of others on request (strategies `retriever-fusion` and `lego`)."""
    disk_cache_dir: Path | None = None
    """Folder for component files, which may be shared with other workers; by default none are kept."""
    disk_cache_bytes: int = Field(default=16 << 30, ge=1)
    """What the files in that folder may take together."""
    max_explained_tokens: int = Field(default=4096, ge=0)
    """Prompt plus completion tokens of a request that asks which components act: they are read a second time, with a KV
    cache of their own. 0 refuses such requests."""
    num_loader_threads: int = Field(default=4, ge=1)
    """Adapters that are brought to main memory at the same time."""
    component_timeout_seconds: float = Field(default=120.0, gt=0)
    """A request whose adapters do not arrive in this time fails."""
    max_placing_seconds: float = Field(default=2.0, ge=0)
    """A request whose adapters have no room on the device gets it after this time, as soon as running requests end."""
    pinned_adapters: tuple[str, ...] = ()
    """Names of adapters that stay on the device once they are in the catalogue, as a JSON list."""
    pinned_basis: RocBasis = RocBasis.SVD
    """Basis of the components that are kept for them: the one the routers use."""
    num_threads: int | None = Field(default=None, ge=1)
    """CPU threads of one operation; by default torch's own choice."""
    drain_seconds: float = Field(default=30.0, ge=0)
    """After SIGTERM, how long requests in flight may go on."""
    otlp_endpoint: str | None = None
    """URL of an OTLP/HTTP receiver of traces, like `http://collector:4318`; by default there are no traces. Needs
    `hilora-serve[tracing]`."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Port of `GET /metrics` for Prometheus, on the host of the gRPC server; 0 takes a free one; by default there is
    none."""
    metrics_as_vllm: bool = False
    """Whether `/metrics` also shows the figures by which schedulers for vLLM choose a server, under vLLM's names."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Lowest level of events that are logged."""

    @model_validator(mode="after")
    def _is_reachable(self) -> WorkerSettings:
        if self.redis_url is not None and self.advertise_address is None:
            raise ValueError("HILORA_WORKER_REDIS_URL needs HILORA_WORKER_ADVERTISE_ADDRESS: where routers reach it")
        return self


class ProcessPlace(BaseSettings):
    """This process's place among those that share a model, in the words of torchrun, which starts them."""

    model_config = SettingsConfigDict(env_prefix="", extra="ignore", frozen=True, use_attribute_docstrings=True)

    rank: int = Field(default=0, ge=0)
    """`RANK`: its number; 0 opens the door, the others follow."""
    world_size: int = Field(default=1, ge=1)
    """`WORLD_SIZE`: how many there are."""
    local_rank: int = Field(default=0, ge=0)
    """`LOCAL_RANK`: its number on this machine, and that of its GPU."""

    @classmethod
    def alone(cls) -> ProcessPlace:
        """The place of a process that has a model to itself, whatever the environment says."""
        return cls(rank=0, world_size=1, local_rank=0)
