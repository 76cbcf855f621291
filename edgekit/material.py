"""What models are tried on: the texts and canary prompts that ship with edgekit."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pydantic import JsonValue

    from edgekit_quantize.gguf_header import GgufHeader
    from edgekit_server.chat.template import ChatTemplate

CALIBRATION_NAME: Final = "code-v1"
SYSTEM: Final = "You are a helpful assistant."
"""Said to models whose template takes it: some write pages of their own where nothing is said."""

MAX_PROMPT_BYTES: Final = 2000
"""A prompt that a template makes longer is asked as bare text, or the canaries take all day."""

CONTROL, USER_DEFINED = 3, 4
"""Token types of GGUF."""

Pieces = tuple[tuple[str, bool], ...]


def folder() -> Path:
    """Return where the texts lie."""
    import edgekit_profiles

    return Path(edgekit_profiles.__file__).parent / "calibration"


def calibration() -> Path:
    return folder() / "calibration.txt"


def evaluation() -> Path:
    return folder() / "evaluation.txt"


def canary_prompts() -> tuple[str, ...]:
    """Return the prompts that are answered before and after quantization."""
    return tuple(tomllib.loads((folder() / "canaries.toml").read_text())["prompts"])


@dataclass(frozen=True, slots=True)
class Trial:
    """How a file is tried: a text, how it is cut, and the prompts. `windows`: None means all."""

    text: Path
    window: int
    windows: int | None
    prompts: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Name all of it; the same trial of the same file need not be made twice."""
        text = hashlib.sha256(self.text.read_bytes()).hexdigest()
        parts = repr((text, self.window, self.windows, self.prompts))
        return hashlib.sha256(parts.encode()).hexdigest()[:16]


def gate() -> Trial:
    """The short trial of a deployment: 1,024 positions over a mixture, and all canaries."""
    return Trial(evaluation(), window=256, windows=8, prompts=canary_prompts())


def rendered(prompts: Sequence[str], header: GgufHeader) -> tuple[tuple[Pieces, ...], str]:
    """Return prompts as a model reads them, by its own chat template, and how they were made.

    Each is pieces of text with whether control tokens in it are real. A model without a template,
    or with one that refuses, gets the bare text.
    """
    bare = tuple(((prompt, False),) for prompt in prompts)
    source = header.metadata.get("tokenizer.chat_template")
    if not isinstance(source, str) or not source.strip():
        return bare, "canary prompts as bare text: the file has no chat template"
    from edgekit_server.chat.template import ChatTemplate
    from edgekit_server.errors import ServerError

    tokens, types = _tokens(header)
    control = [t for t, kind in zip(tokens, types, strict=False) if kind in (CONTROL, USER_DEFINED)]
    try:
        template = ChatTemplate(
            source,
            bos=_special(header, tokens, "bos"),
            eos=_special(header, tokens, "eos"),
            control_tokens=control,
            limited=True,
        )
        made = _by(template, prompts)
    except ServerError as error:
        return bare, f"canary prompts as bare text: {error}"
    longest = max((sum(len(t.encode()) for t, _ in pieces) for pieces in made), default=0)
    if longest > MAX_PROMPT_BYTES:
        return (
            bare,
            f"canary prompts as bare text: the chat template makes {longest:,} bytes of one",
        )
    return made, "canary prompts by the file's own chat template"


def _by(template: ChatTemplate, prompts: Sequence[str]) -> tuple[Pieces, ...]:
    """Render prompts, with SYSTEM where the template takes it. Raises ServerError."""
    from edgekit_server.errors import ServerError

    def render(system: list[dict[str, JsonValue]]) -> tuple[Pieces, ...]:
        made = [template.render([*system, {"role": "user", "content": p}]) for p in prompts]
        return tuple(tuple((text, real) for text, real in m.pieces) for m in made)

    try:
        return render([{"role": "system", "content": SYSTEM}])
    except ServerError:
        return render([])


def _tokens(header: GgufHeader) -> tuple[list[str], list[int]]:
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    types = header.metadata.get("tokenizer.ggml.token_type")
    if isinstance(tokens, str) or not isinstance(tokens, Sequence):
        return [], []
    kinds = types if isinstance(types, Sequence) and not isinstance(types, str) else ()
    return [str(t) for t in tokens], [int(k) for k in kinds]


def _special(header: GgufHeader, tokens: list[str], role: str) -> str | None:
    at = header.metadata.get(f"tokenizer.ggml.{role}_token_id")
    return tokens[at] if isinstance(at, int) and 0 <= at < len(tokens) else None
