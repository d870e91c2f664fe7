"""The option `squeeze` of an upload: compress the adapter when it is ingested."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hilora.compression import Squeeze
from hilora.errors import InvalidInput


class SqueezeOption(BaseModel):
    """`{"rank": n}` or `{"energy": x}`."""

    model_config = ConfigDict(extra="forbid")

    rank: Annotated[int, Field(ge=1, le=65536, strict=True)] | None = None
    """Largest rank of a module."""
    energy: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Share of each module's energy that is kept."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.rank is None) == (self.energy is None):
            raise ValueError("give exactly one of rank and energy")
        return self

    def to_squeeze(self) -> Squeeze:
        """The option as the registry's work takes it."""
        return Squeeze(rank=self.rank, energy=self.energy)


def parse_squeeze(text: str) -> Squeeze | None:
    """The option from a form field; empty is none.

    Raises:
        InvalidInput: `invalid_squeeze`.
    """
    if not text:
        return None
    try:
        return SqueezeOption.model_validate_json(text).to_squeeze()
    except ValidationError as error:
        raise InvalidInput(
            f"The field squeeze cannot be read: {error.errors()[0]['msg']}.",
            code="invalid_squeeze",
            remedy='Send {"rank": 16} or {"energy": 0.99}.',
            place="squeeze",
        ) from error
