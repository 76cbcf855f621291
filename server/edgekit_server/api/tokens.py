"""POST /tokenize and /detokenize, in llama-server's shapes."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import StrictInt
from starlette.responses import JSONResponse, Response

from ..engine import wire
from ..engine.wire import Piece
from ..router import Model
from .body import body_document, read_model, while_connected
from .deadline import within
from .params import with_bos
from .schema import Lenient

routes = APIRouter()


class TokenizeRequest(Lenient):
    content: str | list[str | StrictInt]
    model: str | None = None
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeRequest(Lenient):
    tokens: list[StrictInt]
    model: str | None = None


@routes.post("/tokenize", openapi_extra=body_document(TokenizeRequest))
async def tokenize(request: Request) -> Response:
    """Return the token ids of a text, or of texts and ids in a row."""
    body = await read_model(request, TokenizeRequest)
    model: Model = await request.app.state.router.model(body.model)

    async def count() -> list[tuple[int, bytes]]:
        found: list[tuple[int, bytes]] = []
        for number, prompt in enumerate(_runs(body, model)):
            question = wire.Tokenize(number, prompt, pieces=body.with_pieces)
            reply = await model.client.tokens(question, param="content")
            pieces = reply.pieces or [b""] * len(reply.tokens)
            found += zip(reply.tokens, pieces, strict=True)
        return found

    found = await while_connected(request, within(request, count()))
    if not body.with_pieces:
        return JSONResponse({"tokens": [token for token, _ in found]})
    return JSONResponse({"tokens": [{"id": token, "piece": _shown(p)} for token, p in found]})


@routes.post("/detokenize", openapi_extra=body_document(DetokenizeRequest))
async def detokenize(request: Request) -> Response:
    """Return the text of token ids, control tokens as their text."""
    body = await read_model(request, DetokenizeRequest)
    model: Model = await request.app.state.router.model(body.model)
    question = wire.Tokenize(0, body.tokens, pieces=True)
    reply = await while_connected(
        request, within(request, model.client.tokens(question, param="tokens"))
    )
    return JSONResponse({"content": b"".join(reply.pieces).decode("utf-8", "replace")})


def _runs(body: TokenizeRequest, model: Model) -> list[list[Piece] | list[int]]:
    """Return texts and runs of ids in order. Special tokens go around a first or only text."""
    items = [body.content] if isinstance(body.content, str) else body.content
    runs: list[list[Piece] | list[int]] = []
    ids: list[int] = []
    for number, item in enumerate(items):
        if isinstance(item, int):
            if not ids:
                runs.append(ids)
            ids.append(item)
            continue
        ids = []
        pieces: list[Piece] = [(item, body.parse_special)]
        if body.add_special and number == 0:
            vectors = model.hello.vectors
            ends = [] if vectors is None else [t for t in (vectors.eos, vectors.sep) if t]
            pieces = [*with_bos(pieces, model.hello), *((text, True) for text in ends)]
        runs.append(pieces)
    return runs


def _shown(piece: bytes) -> str | list[int]:
    """Return a token's text, or its bytes where they are no whole text."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)
