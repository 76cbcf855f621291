"""FIM prompts for vocabularies that put a space in front of a text.

SentencePiece does so after every control token, and the prefix wants it; a suffix must go on
exactly where the middle ends (Code Llama's `encode_infilling`; mistral-common's `encode_fim`).
"""

from __future__ import annotations

from ..engine.wire import Piece
from ..router import Model

_SHIELD = "\n"
"""Text that takes the space instead of the suffix, and melts into no token with it."""


async def fim_prompt(model: Model, pieces: list[Piece]) -> list[Piece] | list[int]:
    """Return a prompt as laid out for this model, for its engine; as ids where need be.

    Raises what `client.tokenize` does. Where a vocabulary joins line breaks to one token, the
    suffix keeps its space.
    """
    opening: Piece = (model.hello.fim["suffix"], True)
    at = pieces.index(opening)
    suffix = pieces[at + 1 : at + 2]
    if not model.hello.pads_text or not suffix or suffix[0][1]:
        return pieces
    shield = await _ids(model, [opening, (_SHIELD, False)])
    shielded = await _ids(model, [opening, (_SHIELD + suffix[0][0], False)])
    if shielded[: len(shield)] != shield:
        return pieces
    before = await _ids(model, pieces[: at + 1])
    after = await _ids(model, pieces[at + 2 :])
    return [*before, *shielded[len(shield) :], *after]


async def _ids(model: Model, pieces: list[Piece]) -> list[int]:
    return await model.client.tokenize(pieces, param="prompt") if pieces else []
