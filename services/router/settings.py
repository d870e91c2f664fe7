"""The router's configuration: environment variables `HILORA_ROUTER_*`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from hilora.access import TrustTier
from services.common.sequence_encoder import DEFAULT_ENCODER
from services.common.tls_settings import TlsServiceSettings


class RouterSettings(TlsServiceSettings):
    """Everything an operator can set on a router."""

    model_config = SettingsConfigDict(env_prefix="HILORA_ROUTER_")

    rpc_host: str = "127.0.0.1"
    """Address the gRPC server binds."""
    rpc_port: int = Field(default=50051, ge=0, le=65535)
    """Port of the gRPC server; 0 takes a free one."""
    rest_host: str = "127.0.0.1"
    """Address the HTTP server binds."""
    rest_port: int = Field(default=8000, ge=0, le=65535)
    """Port of the HTTP server; 0 takes a free one."""
    registry_address: str = "127.0.0.1:50052"
    """`host:port` of the registry's gRPC server, which is followed."""
    worker_addresses: Annotated[tuple[str, ...], NoDecode] = ("127.0.0.1:50053",)
    """Where the workers are, separated by commas: `host:port`, or `dns:///name:port` for every address of a name, or
    `redis` for those that register themselves at `HILORA_ROUTER_REDIS_URL`."""
    worker_lookup_seconds: float = Field(default=2.0, gt=0)
    """Time between two lookups of a name, or of what is registered; a worker leaves once three did not name it."""
    worker_first_event_seconds: float = Field(default=300.0, gt=0)
    """A worker that has not admitted a request after this time, its queue included, is lost to it."""
    worker_stall_seconds: float = Field(default=120.0, gt=0)
    """So is one that says nothing for so long while it answers."""
    base_model_name: str | None = None
    """Public name of the base model; by default the last part of what the workers report."""
    encoder: str = DEFAULT_ENCODER
    """Sentence encoder: a folder or a hub name; must be the registry's."""
    encoder_instruction: str = ""
    """Text put before every input of the encoder; must be the registry's."""
    mode: Literal["paper", "calibrated"] = "calibrated"
    """How likelihoods become adapters and budgets where a request does not say."""
    gamma: float | None = Field(default=None, gt=0, le=1)
    """Share of the candidates' ranks that may be active; by default the mode's own."""
    max_candidates: int | None = Field(default=None, ge=1, le=1024)
    """Most adapters in one plan; by default the mode's own."""
    min_trust_tier: TrustTier = TrustTier.UNTRUSTED
    """Adapters of a lower tier exist for nobody; a request may ask for more."""
    api_keys_file: Path | None = None
    """File with the keys of those who may ask, a JSON list of `{"name", "sha256", "scopes", "tenant", "limits",
    "expires_at"}` (`hilora keys create` makes one); read again when it changes. Without it everybody may."""
    allow_anonymous: bool = False
    """Whether everybody may ask although the doors are not on loopback."""
    redis_url: SecretStr | None = None
    """`redis://`, `rediss://` or `unix:///socket?db=0`, where limits are counted for all routers together; without it
    each router counts for itself. Workers that register themselves do so here, too."""
    default_requests_per_minute: int | None = Field(default=None, ge=1)
    """Limit of keys without limits of their own, and of everybody without a key together."""
    default_tokens_per_minute: int | None = Field(default=None, ge=1)
    """The same for tokens of prompts and answers."""
    default_tokens_per_day: int | None = Field(default=None, ge=1)
    """The same over a day."""
    default_max_concurrent: int | None = Field(default=None, ge=1)
    """The same for requests at once."""
    max_in_flight: int = Field(default=1024, ge=1)
    """Requests that this router works on at once; more are refused with 429."""
    cors_origins: tuple[str, ...] = ()
    """Origins (a JSON list) whose pages may call from a browser; none by default."""
    trust_tenant_header: bool = False
    """Whether clients may name their tenant (`X-HiLoRA-Tenant`, over gRPC `tenant`): only behind a proxy that does."""
    traffic_window_seconds: float = Field(default=300.0, gt=0)
    """Time over which each adapter's share of the automatic decisions is taken."""
    traffic_alarm_share: float = Field(default=0.5, gt=0, le=1)
    """A recent or little trusted adapter that takes more than this share raises an alarm."""
    traffic_alarm_growth: float = Field(default=5.0, gt=1)
    """So does one that takes more than this many times the share it had in the window before."""
    traffic_alarm_min_decisions: int = Field(default=50, ge=1)
    """Windows with fewer automatic decisions raise no alarm."""
    traffic_watched_seconds: float = Field(default=86_400.0, ge=0)
    """How long an adapter counts as recent."""
    traffic_watched_below: TrustTier = TrustTier.COMMUNITY
    """Adapters of a lower tier are watched however old they are."""
    max_routed_chars: int = Field(default=8192, ge=1)
    """Characters at the start of a text that are embedded: encoders read no more than some hundred tokens."""
    index_dense_up_to: int = Field(default=2_000, ge=0)
    """Adapters up to which every score is computed without an index."""
    index_exact_up_to: int = Field(default=50_000, ge=0)
    """Adapters up to which every score enters the posterior; beyond, the sum over the unlikely ones is estimated."""
    index_whole_up_to: int = Field(default=200_000, ge=0)
    """Adapters up to which the index looks at all of them; beyond, at a part, if that finds enough."""
    index_min_recall: float = Field(default=0.99, ge=0, le=1)
    """Share of the ten nearest adapters that a look at a part must find, as measured when the index is built."""
    tool_call_format: Literal["auto", "hermes", "llama", "mistral"] = "auto"
    """How the base writes calls of tools; `auto` takes whichever of the three it meets."""
    request_timeout_seconds: float = Field(default=600.0, gt=0)
    """Longest time one generation may take."""
    max_body_bytes: int = Field(default=4 * 1024 * 1024, ge=1024)
    """Longest HTTP request body."""
    drain_seconds: float = Field(default=30.0, ge=0)
    """After SIGTERM, how long requests in flight may go on."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Lowest level of events that are logged."""

    @field_validator("worker_addresses", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("worker_addresses")
    @classmethod
    def _at_least_one(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("at least one worker address is needed")
        return value
