"""Configuration of a service: environment variables with one prefix, checked at start.

A variable that carries the service's prefix but names no field is an error, because a misspelt setting that is
silently ignored is found out in production.
"""

from __future__ import annotations

import os
from typing import Any

from pydantic import model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from hilora.errors import InvalidInput


class ServiceSettings(BaseSettings):
    """Base of every `settings.py`. A subclass sets `env_prefix` and documents each field with a docstring."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # inputs hold secrets, and the error of a failed start is logged
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_variables(cls, values: Any) -> Any:
        prefix = cls.model_config.get("env_prefix", "")
        known = {f"{prefix}{name}".upper() for name in cls.model_fields}
        unknown = sorted(name for name in os.environ if prefix and name.startswith(prefix) and name not in known)
        if unknown:
            raise InvalidInput(
                f"Unknown setting {', '.join(unknown)}.",
                code="unknown_setting",
                remedy="docs/configuration.md lists every variable; correct or unset it.",
                place=unknown[0],
            )
        return values
