"""POST /v1/rerank: how well documents answer a query, best first (Jina's and Cohere's shape)."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import AliasChoices, Field
from starlette.responses import JSONResponse, Response

from ..engine import wire
from ..engine.wire import Piece, Vectors
from ..errors import RequestError
from ..router import Model
from .body import body_document, read_model, while_connected
from .deadline import within
from .embeddings import floats, vectors_of
from .params import with_bos
from .schema import Lenient

routes = APIRouter()

MOST_DOCUMENTS = 2048
_SLOT = re.compile(r"\{(query|document)\}")


class Document(Lenient):
    text: str


class RerankRequest(Lenient):
    query: Annotated[str, Field(min_length=1)]
    documents: Annotated[
        list[str | Document],
        Field(
            min_length=1,
            max_length=MOST_DOCUMENTS,
            validation_alias=AliasChoices("documents", "texts"),
        ),
    ]
    model: str | None = None
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool | None = None


@routes.post("/v1/rerank", openapi_extra=body_document(RerankRequest))
async def rerank(request: Request) -> Response:
    """Return the documents' indices with their scores, the highest first."""
    body = await read_model(request, RerankRequest)
    finding = request.app.state.router.model(body.model, role="rerank")
    model: Model = await while_connected(request, finding)
    vectors = vectors_of(model)
    if vectors.pooling != "rank":
        raise RequestError(
            "this model cannot rerank: it has no head that scores a query with a document. Use a "
            "reranking model, such as bge-reranker or Qwen3-Reranker",
            code="not_supported",
            param="model",
        )
    texts = [item if isinstance(item, str) else item.text for item in body.documents]
    question = wire.Embed(0, [pair(body.query, text, model, vectors) for text in texts])
    reply = await while_connected(
        request, within(request, model.client.embed(question, param="documents"))
    )
    scores = [floats(vector)[0] for vector in reply.vectors]
    order = sorted(range(len(texts)), key=lambda i: (-scores[i], i))
    n_tokens = sum(reply.n_tokens)
    return JSONResponse(
        {
            "object": "list",
            "model": model.id,
            "results": [
                {
                    "index": i,
                    "relevance_score": scores[i],
                    **({"document": {"text": texts[i]}} if body.return_documents else {}),
                }
                for i in order[: body.top_n]
            ],
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }
    )


def pair(query: str, document: str, model: Model, vectors: Vectors) -> list[Piece] | list[int]:
    """Return what the model reads: its own template, or the two texts between its end tokens.

    Neither text can put a control token there.
    """
    given = {"query": query, "document": document}
    pieces: list[Piece] = []
    if vectors.rank_template is not None:
        for at, part in enumerate(_SLOT.split(vectors.rank_template)):
            pieces.append((given[part], False) if at % 2 else (part, True))
        return pieces
    end = [(vectors.rank_end, True)] if vectors.rank_end else []
    sep = [(vectors.sep, True)] if vectors.sep else []
    return [*with_bos([], model.hello), (query, False), *end, *sep, (document, False), *end]
