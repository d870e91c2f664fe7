"""`/v1/embeddings`: the encoder by which adapters are chosen, for whoever wants to see what it sees."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from pydantic import Field

from hilora.errors import Unavailable, UnknownAdapter
from services.common.inference_keys import InferenceScope
from services.router.admission import Admission
from services.router.entrypoints.access import caller_of, require
from services.router.entrypoints.disconnects import unless_disconnected
from services.router.entrypoints.openai.descriptions import JsonObject
from services.router.entrypoints.openai.documents import ERROR_RESPONSES, EmbeddingListDocument
from services.router.entrypoints.openai.request_fields import StrictRequest, Text
from services.router.entrypoints.openai.sampling_fields import refuse_unsupported, unsupported
from services.router.ports import TextEmbedder

ENCODER_MODEL = "encoder"
"""`model` value that means the encoder, whatever it is."""

_MAX_INPUTS = 2048
_CHARACTERS_PER_TOKEN = 4
_UNSUPPORTED: dict[str, tuple[tuple[object, ...], str]] = {
    "dimensions": ((), "Leave it out: the encoder was not trained for shorter vectors."),
}

InputText = Annotated[Text, Field(min_length=1)]
"""One text to embed."""


class EmbeddingBody(StrictRequest):
    """`POST /v1/embeddings`."""

    model: Text = Field(min_length=1, max_length=512)
    input: (
        InputText
        | Annotated[list[InputText], Field(min_length=1, max_length=_MAX_INPUTS)]
        | Annotated[list[int], Field(min_length=1)]
        | Annotated[list[list[int]], Field(min_length=1, max_length=_MAX_INPUTS)]
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Any = None
    user: Any = None

    def texts(self) -> list[str]:
        """The texts to embed.

        Raises:
            InvalidInput: `unsupported_parameter`, for token ids.
        """
        given = [self.input] if isinstance(self.input, str) else self.input
        texts = [text for text in given if isinstance(text, str)]
        if len(texts) < len(given):
            raise unsupported(
                "input",
                "Send texts: the encoder has a tokenizer of its own. (LangChain: check_embedding_ctx_length=False.)",
            )
        return texts


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderRoutes:
    """The route over the router's encoder."""

    embedder: TextEmbedder
    admission: Admission

    def api_router(self) -> APIRouter:
        """For `FastAPI.include_router`."""
        routes = APIRouter(responses=ERROR_RESPONSES)
        routes.add_api_route(
            "/v1/embeddings",
            self._embed,
            methods=["POST"],
            response_model=EmbeddingListDocument,
            dependencies=[require(InferenceScope.INFER)],
        )
        return routes

    async def _embed(self, body: EmbeddingBody, request: Request) -> JsonObject:
        """Embed texts; the vectors have norm 1."""
        refuse_unsupported(body, _UNSUPPORTED)
        texts = body.texts()
        encoder_id = self._encoder_id(body.model)
        probable = sum(map(len, texts)) // _CHARACTERS_PER_TOKEN
        async with self.admission.admit(caller_of(request), num_tokens=probable) as admitted:
            embeddings, num_tokens = await unless_disconnected(request, self._embedded(texts))
            admitted.add(num_tokens)
        return {
            "object": "list",
            "model": encoder_id,
            "data": [
                {"object": "embedding", "index": place, "embedding": _written(vector_E, body.encoding_format)}
                for place, vector_E in enumerate(embeddings)
            ],
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        }

    async def _embedded(self, texts: list[str]) -> tuple[list[NDArray[np.float32]], int]:
        # All at once: those that wait together are embedded together.
        embeddings = await asyncio.gather(*(self.embedder.embed(text) for text in texts))
        return embeddings, await self.embedder.count_tokens(texts)

    def _encoder_id(self, model: str) -> str:
        encoder_id = self.embedder.encoder_id
        if encoder_id is None:
            raise Unavailable(
                "The sentence encoder is not loaded.",
                code="encoder_loading",
                remedy="Wait until GET /readyz answers 200.",
            )
        if model not in {ENCODER_MODEL, encoder_id, encoder_id.partition(":")[0]}:
            raise UnknownAdapter(
                f"The model {model[:80]!r} makes no embeddings.",
                code="model_not_found",
                remedy=f"Use {ENCODER_MODEL!r}, which is {encoder_id!r} here.",
                place="model",
            )
        return encoder_id


def _written(vector_E: NDArray[np.float32], form: str) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(vector_E.astype("<f4").tobytes()).decode()
    return [float(value) for value in vector_E]
