"""The router's configuration: environment variables `HILORA_ROUTER_*`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from hilora.access import TrustTier
from hilora.routing_settings import ScoreRule
from hilora.strategies import STRATEGY_NAMES
from services.common.kept_encoders import KEPT_ENCODERS_FOLDER
from services.common.openvino_encoder import EncoderPrecision
from services.common.sequence_encoder import DEFAULT_ENCODER, EncoderBackend
from services.common.tls_settings import TlsServiceSettings
from services.router.pool_index import IndexRules
from services.router.routing_options import LowConfidencePolicy, RoutedPart
from services.router.sessions import SessionMatching


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
    worker_first_event_seconds: float = Field(default=60.0, gt=0)
    """A worker that has not admitted a request and answered no poll for so long is lost to it; waiting in the queue of
    one that answers polls does not count."""
    worker_stall_seconds: float = Field(default=120.0, gt=0)
    """So is one that says nothing for so long while it answers."""
    base_model_name: str | None = None
    """Public name of the base model; by default the last part of what the workers report."""
    encoder: str = DEFAULT_ENCODER
    """Sentence encoder: a folder or a hub name; must be the registry's."""
    encoder_instruction: str = ""
    """Text put before every input of the encoder; must be the registry's."""
    encoder_threads: int | None = Field(default=None, ge=1)
    """CPU threads of one pass of the encoder; by default half of the processors, at most four, on OpenVINO, and torch's
    own choice on torch."""
    encoder_backend: EncoderBackend = EncoderBackend.AUTO
    """What computes it: `openvino`, `torch`, or `auto`, which is OpenVINO where that is installed and knows the
    encoder, and torch elsewhere. The vectors are the same, on CPUs in about half the time for short texts."""
    encoder_precision: EncoderPrecision = EncoderPrecision.AUTO
    """What OpenVINO computes in: `float32`, `bfloat16`, or `auto`, which is bfloat16 on CPUs that have instructions for
    it. Its vectors lie within half a per cent of those of float32, in which the registry computes."""
    kept_encoders_dir: Path = KEPT_ENCODERS_FOLDER
    """Folder in which what OpenVINO needs of an encoder that is a folder, the shipped one among them, is kept for the
    next start, which takes seconds less. Processes may share it; it may be read-only once it is filled."""
    encoder_max_batch: int = Field(default=32, ge=1)
    """Most texts that are embedded together."""
    encoder_max_waiting: int = Field(default=4096, ge=1)
    """Different texts that may wait for the encoder; one more is refused with 429."""
    encoder_timeout_seconds: float = Field(default=30.0, gt=0)
    """A text that has no embedding after this time is answered with 503 (`encoder_timeout`)."""
    encoder_cache_texts: int = Field(default=4096, ge=0)
    """Texts whose embeddings are remembered, by a hash; 0 remembers none."""
    encoder_cache_bytes: int = Field(default=16 << 20, ge=0)
    """Most memory for them."""
    decision_cache_texts: int = Field(default=1024, ge=0)
    """Decisions that are remembered until the catalogue changes, by a hash of the text; 0 remembers none."""
    strategy: str = "hilora"
    """By which strategy adapters are chosen where a request does not say; docs/strategies.md lists them."""
    gates: Annotated[dict[str, str], NoDecode] = Field(default_factory=dict[str, str])
    """Learned gates of the strategies that need one, `strategy=gate_id` separated by commas; the workers have the files
    in `HILORA_WORKER_GATES_DIR`. `hilora train gate` makes them."""
    lorahub_weights: Path | None = None
    """File with the factors of the strategy `lorahub`, as `hilora train lorahub` writes it; read at the start."""
    score_rule: ScoreRule = ScoreRule.STACKED
    """What adapters are scored by: `stacked`, meaning and wording of a text with weights fitted to the pool, or
    `gaussian`, its meaning alone."""
    combine_skills: bool = True
    """Whether a text that no adapter explains, and two together do, is read with both adapters and answered by the one
    whose skill it asks for first."""
    low_confidence: LowConfidencePolicy = LowConfidencePolicy.TOP
    """What happens to a text that no adapter explains: `top` lets the likeliest answer, `base` the base alone, `refuse`
    refuses the request."""
    routed_part: RoutedPart = RoutedPart.LAST_USER
    """Which part of a conversation adapters are chosen by: `last_user`, `conversation`, or `window`, the last messages
    of the user."""
    routed_turns: int = Field(default=3, ge=1, le=1024)
    """How many messages the window has."""
    sessions: SessionMatching = SessionMatching.PREFIX
    """By what requests are taken together to share a plan while their topic stays: `prefix`, a session id or what a
    conversation began with; `id`, a session id alone; `off`."""
    session_ttl_seconds: float = Field(default=3600.0, gt=0)
    """How long a session is remembered after its last turn."""
    max_sessions: int = Field(default=10_000, ge=1)
    """Points of sessions that this process remembers; the oldest go first."""
    replan_odds: float = Field(default=9.0, ge=1)
    """A session's plan ends when another adapter is more than so many times as likely as the plan's together, and comes
    near to explaining the text."""
    replan_share: float = Field(default=0.7, ge=0, le=1)
    """How near: the share of the gap between the plan's adapters and a new task that the other one closes."""
    plan_ttl_seconds: float = Field(default=3600.0, gt=0)
    """How long a plan can be asked for by its id after it was last used."""
    max_plans: int = Field(default=10_000, ge=1)
    """Plans that this process remembers; the oldest go first."""
    gamma: float | None = Field(default=None, gt=0, le=1)
    """Share of the candidates' ranks that may be active; by default the strategy's own."""
    max_candidates: int | None = Field(default=None, ge=1, le=1024)
    """Most adapters in one plan; by default the strategy's own."""
    min_trust_tier: TrustTier = TrustTier.UNTRUSTED
    """Adapters of a lower tier exist for nobody; a request may ask for more."""
    api_keys_file: Path | None = None
    """File with the keys of those who may ask, a JSON list of `{"name", "sha256", "scopes", "tenant", "limits",
    "expires_at"}` (`hilora keys create` makes one); read again when it changes. Without it everybody may."""
    allow_anonymous: bool = False
    """Whether everybody may ask although the doors are not on loopback."""
    redis_url: SecretStr | None = None
    """`redis://`, `rediss://` or `unix:///socket?db=0`, where limits are counted, plans and sessions remembered, and
    workers that register themselves found, for all routers together; without it each router does so for itself."""
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
    metrics_adapters: int = Field(default=0, ge=0, le=1000)
    """Adapters that `/metrics` counts by name; the others together. 0 names none."""
    route_log_file: Path | None = None
    """File that gets one JSON line for each sampled generation (`hilora route-log` reads it); by default none."""
    route_log_sample_rate: float = Field(default=1.0, ge=0, le=1)
    """Share of the generations that are written to it."""
    route_log_bytes: int = Field(default=64 << 20, ge=4096)
    """Size at which that file is turned over; the four before it are kept."""
    otlp_endpoint: str | None = None
    """URL of an OTLP/HTTP receiver of traces, like `http://collector:4318`; by default there are no traces. Needs
    `hilora-serve[tracing]`."""
    trace_sample_ratio: float = Field(default=1.0, ge=0, le=1)
    """Share of the traces that begin here which are recorded; one that a caller began follows the caller."""
    log_prompts: bool = False
    """Whether the route log may hold the words of requests; otherwise it holds a hash of them."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Lowest level of events that are logged."""

    def index_rules(self) -> IndexRules:
        """How a pool of which size is searched."""
        return IndexRules(
            dense_up_to=self.index_dense_up_to,
            exact_up_to=self.index_exact_up_to,
            whole_up_to=self.index_whole_up_to,
            min_recall=self.index_min_recall,
        )

    @field_validator("strategy")
    @classmethod
    def _is_strategy(cls, value: str) -> str:
        if value not in STRATEGY_NAMES:
            raise ValueError(f"there is no such strategy; use one of {', '.join(STRATEGY_NAMES)}")
        return value

    @field_validator("gates", mode="before")
    @classmethod
    def _gates(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        return {name.strip(): gate_id.strip() for name, _, gate_id in pairs}

    @field_validator("gates")
    @classmethod
    def _name_strategies(cls, value: dict[str, str]) -> dict[str, str]:
        for name, gate_id in value.items():
            if name not in STRATEGY_NAMES or not gate_id:
                raise ValueError(f"{name}={gate_id} is not of the form strategy=gate_id")
        return value

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
