"""POST /v1/embeddings: texts or token ids to vectors."""

from __future__ import annotations

import base64
import sys
from array import array
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from ..engine import wire
from ..engine.wire import Piece, Vectors
from ..errors import RequestError
from ..router import Model
from .body import body_document, read_model, while_connected
from .deadline import within
from .params import with_bos
from .schema import Lenient, Prompt

routes = APIRouter()

MOST_INPUTS = 2048
"""OpenAI's limit."""


class EmbeddingRequest(Lenient):
    input: Prompt
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    embd_normalize: Annotated[int, Field(ge=-1, le=64)] | None = None
    """llama-server's: -1 none, 0 largest value 32760, p the p-norm 1; left out: 2."""


@routes.post("/v1/embeddings", openapi_extra=body_document(EmbeddingRequest))
async def embeddings(request: Request) -> Response:
    """Return one vector per input, in order."""
    body = await read_model(request, EmbeddingRequest)
    model, reply = await embed(request, body)
    n_tokens = sum(reply.n_tokens)
    return JSONResponse(
        {
            "object": "list",
            "model": model.id,
            "data": [
                {"object": "embedding", "index": i, "embedding": written(vector, body)}
                for i, vector in enumerate(reply.vectors)
            ],
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }
    )


async def embed(request: Request, body: EmbeddingRequest) -> tuple[Model, wire.Embedded]:
    """Have the vectors made, in any dialect. RequestError for what the model cannot give;
    ClientGoneError when the client leaves."""
    finding = request.app.state.router.model(body.model, role="embeddings")
    model: Model = await while_connected(request, finding)
    vectors = vectors_of(model)
    check(body, vectors)
    question = wire.Embed(
        0,
        [_prompt(item, model, vectors) for item in _inputs(body.input)],
        norm=2 if body.embd_normalize is None else body.embd_normalize,
        dimensions=body.dimensions,
    )
    reply = await while_connected(
        request, within(request, model.client.embed(question, param="input"))
    )
    return model, reply


def vectors_of(model: Model) -> Vectors:
    """Return how the model makes vectors; RequestError when the engine makes none: a 400,
    since clients would repeat a 5xx."""
    if model.hello.vectors is None:
        raise RequestError("this engine makes no vectors", code="not_supported", param="model")
    return model.hello.vectors


def check(body: EmbeddingRequest, vectors: Vectors) -> None:
    """Raise RequestError for what this model cannot give."""
    if vectors.pooling == "none":
        raise RequestError(
            "this model's pooling is 'none', so a text has no single vector; start the server "
            "with another pooling",
            code="unsupported_pooling",
            param="model",
        )
    if vectors.pooling == "rank":
        raise RequestError(
            "this model ranks documents and makes no embeddings; use /v1/rerank, or start the "
            "server with another pooling",
            code="unsupported_pooling",
            param="model",
        )
    if body.dimensions is not None and body.dimensions > vectors.n_out:
        raise RequestError(
            f"dimensions {body.dimensions}: vectors of this model have {vectors.n_out} values",
            code="invalid_value",
            param="dimensions",
        )


def _inputs(given: Prompt) -> list[str | list[int]]:
    if isinstance(given, str):
        return [given]
    ids = [item for item in given if isinstance(item, int)]
    items: list[str | list[int]] = (
        [ids] if ids else [item for item in given if not isinstance(item, int)]
    )
    if not 0 < len(items) <= MOST_INPUTS:
        raise RequestError(
            f"input has {len(items)} items; it must have 1 to {MOST_INPUTS}",
            code="invalid_value",
            param="input",
        )
    return items


def _prompt(item: str | list[int], model: Model, vectors: Vectors) -> list[Piece] | list[int]:
    """Return one input for the engine; text gets what the model was trained to see around it."""
    n_vocab = model.hello.n_vocab
    if isinstance(item, list):
        wrong = next((token for token in item if not 0 <= token < n_vocab), None)
        if wrong is not None:
            raise RequestError(
                f"input: {wrong} is no token id of this model (0 to {n_vocab - 1}). If your client "
                "counts tokens with another model's vocabulary, have it send text: LangChain does "
                "with check_embedding_ctx_length=False",
                code="bad_token",
                param="input",
            )
        return item
    if not item:
        raise RequestError("input: a text is empty", code="invalid_value", param="input")
    ends = [(text, True) for text in (vectors.eos, vectors.sep) if text]
    return [*with_bos([(item, True)], model.hello), *ends]


def written(vector: bytes, body: EmbeddingRequest) -> str | list[float]:
    """Return a little-endian float32 vector as the client asked for it."""
    if body.encoding_format == "base64":
        return base64.b64encode(vector).decode()
    return floats(vector)


def floats(vector: bytes) -> list[float]:
    """Return the values of a little-endian float32 vector."""
    values = array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()
