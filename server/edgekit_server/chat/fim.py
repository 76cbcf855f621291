"""Fill in the middle: prefix and suffix around a model's FIM control tokens.

Layouts: Mistral puts the suffix first and has no middle token (mistral-common, `encode_fim`);
Qwen, StarCoder, DeepSeek, Code Llama and Granite put prefix, suffix, then the middle token.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..engine.wire import Piece
from ..errors import RequestError

MISTRAL_PREFIX = "[PREFIX]"
MISTRAL_SUFFIX = "[SUFFIX]"


def fim_pieces(prefix: str, suffix: str, fim: Mapping[str, str]) -> list[Piece]:
    """Return the prompt, without BOS; `fim` is Hello.fim. RequestError if the model has no FIM."""
    before, after, middle = fim.get("prefix"), fim.get("suffix"), fim.get("middle")
    if before == MISTRAL_PREFIX and after == MISTRAL_SUFFIX:
        return [(after, True), (suffix, False), (before, True), (prefix, False)]
    if before and after and middle:
        return [(before, True), (prefix, False), (after, True), (suffix, False), (middle, True)]
    raise RequestError(
        "this model has no fill-in-the-middle tokens, so `suffix` cannot be served; "
        "use a model trained for it, such as a Qwen2.5-Coder",
        code="unsupported_parameter",
        param="suffix",
    )
