"""The configuration of the one-process system: environment variables `HILORA_STANDALONE_*`.

What is not listed here keeps the default of the service it belongs to, or that service's own `HILORA_<SERVICE>_*`
variable.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from services.common.sequence_encoder import DEFAULT_ENCODER
from services.common.settings_base import ServiceSettings


class StandaloneSettings(ServiceSettings):
    """Everything an operator can set on `hilora serve`."""

    model_config = SettingsConfigDict(env_prefix="HILORA_STANDALONE_")

    base_model: str
    """The base model: a folder with config, safetensors weights and tokenizer, or a hub id."""
    base_model_name: str | None = None
    """Public name of the base model; by default the folder's name, or the hub id."""
    data_dir: Path
    """Folder of everything that must survive: artifacts, Redis's file, logs. Made if it is not there."""
    host: str = "127.0.0.1"
    """Address the public HTTP port binds."""
    port: int = Field(default=8000, ge=0, le=65535)
    """The public HTTP port; 0 takes a free one."""
    rpc_port: int = Field(default=0, ge=0, le=65535)
    """The public gRPC port (`RouterService`), on the same host; 0 takes a free one."""
    admin_api_key: SecretStr | None = None
    """Key of the admin routes (adapters, jobs, audit log) with every scope; some key is needed unless the host is a
    loopback address."""
    admin_keys_file: Path | None = None
    """File with further admin keys and their scopes, see `HILORA_REGISTRY_ADMIN_KEYS`; read again when it changes."""
    api_keys_file: Path | None = None
    """File with the keys of those who may ask for answers, see `HILORA_ROUTER_API_KEYS_FILE`; without it everybody
    may."""
    allow_anonymous: bool = False
    """Whether everybody may ask for answers although the host is no loopback address."""
    encoder: str = DEFAULT_ENCODER
    """Sentence encoder: a folder or a hub name."""
    encoder_instruction: str = ""
    """Text put before every input of the encoder."""
    device: str = "auto"
    """`auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`."""
    drain_seconds: float = Field(default=30.0, ge=0)
    """After SIGTERM, how long requests in flight may go on."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Lowest level of events that are logged."""

    @property
    def has_admin_keys(self) -> bool:
        """Whether there is a key to the admin routes."""
        return self.admin_api_key is not None or self.admin_keys_file is not None


def child_environment(variables: Mapping[str, str], *, prefix: str) -> dict[str, str]:
    """Our own environment for a child process that is to read `variables`, and nothing else of their prefix."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(prefix)}
    return {**inherited, **variables}
