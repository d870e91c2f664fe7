"""What all request bodies are made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

UINT64 = 2**64
"""One more than the largest seed."""


def _check_characters(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("holds half of a surrogate pair, which is no character") from error
    return text


Text = Annotated[str, AfterValidator(_check_characters)]
"""JSON can spell halves of surrogate pairs, which no other layer can carry."""

StopText = Annotated[Text, Field(min_length=1, max_length=1024)]
"""One text that ends an answer."""


class StrictRequest(BaseModel):
    """Unknown fields are errors: a misspelt parameter must not pass for a default. So are values of another type, the
    text "5" for the number 5, as at OpenAI. Fields of an enumeration need `Field(strict=False)`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)
