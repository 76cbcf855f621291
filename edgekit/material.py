"""What models are tried on: the texts and canary prompts that ship with edgekit."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from edgekit_quantize.gguf_header import GgufHeader

CALIBRATION_NAME: Final = "code-v1"
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
        made = [template.render([{"role": "user", "content": prompt}]) for prompt in prompts]
    except ServerError as error:
        return bare, f"canary prompts as bare text: {error}"
    return tuple(tuple((t, s) for t, s in m.pieces) for m in made), (
        "canary prompts by the file's own chat template"
    )


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
