"""Configuration of the registry and of its ingest process: both read the same variables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from hilora.access import TrustTier
from services.common.auth import AccessKey, checked_keys, refuse_open_door
from services.common.kept_encoders import KEPT_ENCODERS_FOLDER
from services.common.sequence_encoder import DEFAULT_ENCODER
from services.common.tls_settings import TlsServiceSettings

_MEBIBYTE = 1024 * 1024


class RegistrySettings(TlsServiceSettings):
    """The registry's environment variables."""

    model_config = SettingsConfigDict(env_prefix="HILORA_REGISTRY_")

    rpc_host: str = "127.0.0.1"
    """Address of the gRPC door."""
    rpc_port: int = Field(default=50051, ge=0, le=65535)
    """Port of the gRPC door; 0 takes a free one."""
    rest_host: str = "127.0.0.1"
    """Address of the admin REST door."""
    rest_port: int = Field(default=8081, ge=0, le=65535)
    """Port of the admin REST door; 0 takes a free one."""
    has_own_rest_port: bool = True
    """Whether to open the REST port at all; off where another server mounts the application."""
    base_model: str
    """Folder or hub name of the served base model; adapters have to fit it."""
    base_model_name: str = ""
    """What clients call the base model; if empty the folder's name, or the hub id."""
    data_dir: Path
    """Folder of everything that survives: artifacts, registrations, accepted uploads."""
    redis_url: SecretStr
    """`redis://`, `rediss://` or `unix:///socket?db=0`; may hold a password."""
    encoder: str = DEFAULT_ENCODER
    """Sentence encoder for sample texts: the shipped one, a folder, or a hub name. Routers need the same."""
    encoder_instruction: str = ""
    """Text put before every sample, for encoders that want an instruction."""
    kept_encoders_dir: Path = KEPT_ENCODERS_FOLDER
    """Folder in which what OpenVINO needs of an encoder is kept, see `HILORA_ROUTER_KEPT_ENCODERS_DIR`."""
    admin_api_key: SecretStr | None = None
    """Key of the admin doors with every scope; in the audit log it is `admin`."""
    admin_keys: tuple[AccessKey, ...] = ()
    """Further keys, a JSON list of `{"name", "sha256", "scopes", "expires_at"}`: the digest of each key, and what it
    opens: some of `read`, `write`, `approve`."""
    admin_keys_file: Path | None = None
    """File with such a list, read again when it changes."""
    allow_anonymous_admin: bool = False
    """Whether local programs may use the admin doors without a key; only on loopback, and only if no key is set."""
    audit_max_file_bytes: int = Field(default=16 * _MEBIBYTE, ge=4096)
    """Size at which the audit log begins its next file."""
    audit_max_files: int = Field(default=64, ge=2)
    """Files of the audit log that are kept; the oldest leave."""
    allowed_local_dirs: tuple[Path, ...] = ()
    """Folders (a JSON list) from which adapters may be ingested by path; none by default."""
    allow_hub: bool = True
    """Whether adapters may be fetched from the HuggingFace Hub."""
    hub_token: SecretStr | None = None
    """Credential for private and gated repositories of the hub; if unset, the library's own: HF_TOKEN or its file."""
    profile_sources: tuple[Literal["dataset", "self_portrait", "card"], ...] = ("dataset", "card", "self_portrait")
    """What the profile of an adapter without sample texts is made of (a JSON list), in order of preference: the data
    set that its card names (if `allow_hub`), its card, texts that a worker generates with it (if `worker_address`)."""
    worker_address: str = ""
    """`host:port` of a worker that generates self-portraits; none are made if empty."""
    allowed_object_stores: tuple[str, ...] = ()
    """Prefixes (a JSON list) such as `s3://bucket/adapters` below which adapters may be read; none by default."""
    allowed_url_hosts: tuple[str, ...] = ()
    """Hosts (a JSON list) from which archives may be fetched: `host`, `host:port`, or `http://host` to allow plain HTTP
    there. None by default; private addresses are refused whatever is listed."""
    max_fetch_seconds: float = Field(default=1800.0, gt=0)
    """Longest time that fetching one adapter may take."""
    max_upload_bytes: int = Field(default=2048 * _MEBIBYTE, ge=1)
    """Largest upload, and largest adapter from anywhere else."""
    max_unpacked_bytes: int = Field(default=4096 * _MEBIBYTE, ge=1)
    """Most bytes an archive may unpack to."""
    max_archive_members: int = Field(default=64, ge=1)
    """Most members of an archive."""
    max_archive_ratio: float = Field(default=200.0, gt=1)
    """Largest unpacked-to-packed ratio of an archive above 16 MiB."""
    max_lora_rank: int = Field(default=512, ge=1)
    """Highest rank that is accepted."""
    max_eager_bytes: int = Field(default=128 * _MEBIBYTE, ge=0)
    """Weights up to this size are checked completely before the upload is answered."""
    max_finished_jobs: int = Field(default=1000, ge=1)
    """Finished ingests kept for inspection."""
    max_kept_changes: int = Field(default=10_000, ge=1)
    """Catalogue changes kept for followers that were away; one further behind takes a new snapshot."""
    job_lease_seconds: float = Field(default=10.0, ge=1.0)
    """After this long without a sign of life an ingest counts as interrupted."""
    max_concurrent_ingests: int = Field(default=1, ge=1, le=32)
    """Ingests that one ingest process works on at a time."""
    ingest_niceness: int = Field(default=10, ge=0, le=19)
    """By how much the ingest process steps back (`nice`): where it shares a machine, requests go first."""
    ingest_visibility_seconds: float = Field(default=300.0, ge=1.0)
    """After this long the queue gives a message that nobody acknowledged to another ingest process."""
    load_wait_seconds: float = Field(default=300.0, gt=0)
    """How long `/v1/load_lora_adapter` waits until its adapter is in the catalogue."""
    recovery_interval_seconds: float = Field(default=5.0, gt=0)
    """Time between two searches for interrupted ingests."""
    watch_heartbeat_seconds: float = Field(default=5.0, gt=0, le=30.0)
    """Time between two signs of life to followers of the catalogue."""
    admission: Literal["open", "quarantine-first"] = "open"
    """Whether a new version is served at once, or waits until somebody approves it."""
    hold_norm_outliers: bool = True
    """Whether a version whose update is far larger or smaller than the pool's waits for approval even so: chosen for
    others' requests, it would spoil their answers."""
    default_trust_tier: TrustTier = TrustTier.COMMUNITY
    """Tier of an adapter of which nobody said otherwise."""
    keep_versions: int = Field(default=5, ge=1)
    """Newest versions of each name that stay servable, besides the current and the aliased ones."""
    collection_grace_seconds: float = Field(default=86_400.0, ge=0)
    """Nothing younger is collected, and what was collected can be brought back for as long."""
    maintenance_interval_seconds: float = Field(default=300.0, gt=0)
    """Time between two rounds of garbage collection, comparison of catalogue and disk, and the look for adapters whose
    profile is missing."""
    max_profile_attempts: int = Field(default=5, ge=1)
    """After so many failed attempts to make the profile of an adapter without sample texts, nothing is tried any more
    until somebody asks for it."""
    profile_retry_seconds: float = Field(default=600.0, gt=0)
    """Time between the first such failure and the next attempt; each further one doubles it, up to a day."""
    reprofile_look_seconds: float = Field(default=300.0, gt=0)
    """Time between two looks of an ingest process for versions without a profile under its encoder."""
    reprofile_batch: int = Field(default=16, ge=1)
    """After a change of the encoder, how many versions are embedded again before ingests have their turn."""
    reprofile_pause_seconds: float = Field(default=0.2, ge=0)
    """Pause between two such batches."""
    redis_wait_seconds: float = Field(default=30.0, ge=0)
    """How long to wait for Redis at the start."""
    exit_with_parent: bool = False
    """Whether the ingest process ends when the process that started it is gone."""
    drain_grace_seconds: float = Field(default=20.0, ge=0)
    """How long calls in flight may take after SIGTERM."""
    log_level: str = "INFO"
    """Lowest level of log events."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        checked_keys(self.admin_keys)
        for host in (self.rpc_host, *((self.rest_host,) if self.has_own_rest_port else ())):
            refuse_open_door(
                host=host,
                has_keys=self.has_admin_keys,
                is_anonymous_allowed=self.allow_anonymous_admin,
                setting="HILORA_REGISTRY_ADMIN_API_KEY",
            )
        return self

    @property
    def has_admin_keys(self) -> bool:
        """Whether there is a key to the admin doors."""
        return self.admin_api_key is not None or bool(self.admin_keys) or self.admin_keys_file is not None

    def to_environment(self) -> dict[str, str]:
        """The variables that give a child process the same settings; holds secrets."""
        prefix = self.model_config.get("env_prefix", "")
        variables: dict[str, str] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, SecretStr):
                variables[f"{prefix}{name}".upper()] = value.get_secret_value()
            elif isinstance(value, tuple):
                items = (item.model_dump(mode="json") if isinstance(item, AccessKey) else str(item) for item in value)
                variables[f"{prefix}{name}".upper()] = json.dumps(list(items))
            elif value is not None:
                variables[f"{prefix}{name}".upper()] = str(value)
        return variables
