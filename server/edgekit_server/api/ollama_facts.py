"""What Ollama's clients want to know of a model: /api/tags, /api/show and /api/ps.

Clients decide by these fields what they offer a person: Roo and VS Code hide a model without
`tools`, Continue completes code only if the template names `.Suffix` and takes its context from
`parameters`, Zed takes it from `model_info`. So: true of this model on this server, or left out;
a text that a strict reader demands is empty where nothing is known.
"""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass
from pathlib import Path

from ..chat.family import Spec, recognise
from ..chat.fim import layout_of
from ..engine import splits
from ..engine.wire import Hello
from ..errors import ServerError
from ..roles import capabilities as abilities
from .ollama_lines import Fields, timestamp
from .ollama_schema import listed_name
from .status import filetype

NEVER = "9999-12-31T23:59:59Z"
"""When a model is unloaded that stays."""
_ROLES = {"completion": "completion", "embeddings": "embedding"}
_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")


@dataclass(frozen=True, slots=True)
class Facts:
    """A model as far as it is known; `hello` is None until it was loaded once."""

    id: str
    path: Path
    hello: Hello | None
    roles: tuple[str, ...] = ()
    """What the operator says that it is there for."""

    @property
    def details(self) -> Fields:
        """Return the object that all three answers have."""
        family = (self.hello.architecture or "") if self.hello else ""
        return {
            "parent_model": "",
            "format": "gguf",
            "family": family,
            "families": [family] if family else [],
            "parameter_size": human(self.hello.n_params) if self.hello else "",
            "quantization_level": (filetype(self.hello.description) or "") if self.hello else "",
        }

    def tag(self) -> Fields:
        """Return an item of /api/tags. Reads the file's size and time: the digest stands for
        these and the name, since hashing a large file takes a minute."""
        size, modified = 0, 0.0
        try:
            found = self.path.stat()
            size, modified = splits.total_bytes(self.path), found.st_mtime
        except (OSError, ServerError):
            size = self.hello.size_bytes if self.hello else 0
        return {
            **self._head(size, modified),
            "size": size,
            "modified_at": timestamp(modified),
            "details": self.details,
        }

    def running(self, hello: Hello, stays_s: float | None = None) -> Fields:
        """Return an item of /api/ps; without `size_vram` where only a part is on a GPU.

        `stays_s`: when it will be unloaded if nobody asks for it; None: never.
        """
        tag = self.tag()
        found = _OFFLOADED.search(hello.reasons.get("n_gpu_layers", ""))
        n_gpu, n_layers = (int(found[1]), int(found[2])) if found else (0, 1)
        vram: Fields = {}
        if n_gpu in (0, n_layers):
            vram = {"size_vram": hello.size_bytes if n_gpu else 0}
        return {
            **{key: tag[key] for key in ("name", "model", "digest", "details")},
            "size": hello.size_bytes,
            **vram,
            "expires_at": NEVER if stays_s is None else timestamp(time.time() + stays_s),
            "context_length": hello.n_ctx_seq,
        }

    def show(self) -> Fields:
        """Return the answer of /api/show."""
        tag = self.tag()
        lines = [f"# {self.id}, served by edgekit", f"FROM {self.id}"]
        shown: Fields = {
            "modified_at": tag["modified_at"],
            "details": self.details,
            "modelfile": "\n".join(lines),
            "parameters": "",
            "template": "",
            "model_info": {"general.basename": self.id},
            "capabilities": [_ROLES[role] for role in self.roles if role in _ROLES],
        }
        if self.hello is None:
            return shown
        return shown | {
            "parameters": f"num_ctx {self.hello.n_ctx_seq}",
            "template": template(self.hello),
            "model_info": model_info(self.hello, self.id),
            "capabilities": capabilities(self.hello),
        }

    def _head(self, size: int, modified: float) -> Fields:
        name = listed_name(self.id)
        told = f"{self.id}\0{self.path.name}\0{size}\0{modified}"
        digest = hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()
        return {"name": name, "model": name, "digest": digest}


def capabilities(hello: Hello) -> list[str]:
    """Return what the loaded model can do, in Ollama's words."""
    able = abilities(hello)
    spec, _ = recognise(hello.chat_template)
    found = {
        "completion": "completion" in able,
        "tools": "tools" in able,
        "insert": "fim" in able,
        "thinking": "chat" in able and thinks(spec, hello),
        # A decoder makes vectors too, but clients take the word for "no chat model".
        "embedding": "embeddings" in able and "completion" not in able,
    }
    return [name for name, holds in found.items() if holds]


def thinks(spec: Spec, hello: Hello) -> bool:
    """Return whether the model reasons: families share markers with models that never do, and
    whose templates do not write them."""
    if spec.channels is not None:
        return True
    return spec.reasoning is not None and spec.reasoning.open in (hello.chat_template or "")


def template(hello: Hello) -> str:
    """Return the chat template, which is Jinja, after a line in Ollama's language for the prompt
    with a suffix, if the model can be given one. For reading: neither is ever run from here."""
    chat = hello.chat_template or "{{ .Prompt }}"
    layout = layout_of(hello.fim) if hello.generates else None
    if layout is None:
        return chat.replace(".Suffix", "")
    prompt = "".join(text for text, _ in layout.pieces("{{ .Prompt }}", "{{ .Suffix }}"))
    return f"{{{{- if .Suffix }}}}{prompt}{{{{- else }}}}\n{chat}\n{{{{- end }}}}"


def model_info(hello: Hello, model_id: str) -> Fields:
    """Return GGUF's keys. The context is that of one sequence on this server, which is what a
    client can use; where the file has no base name, the model's id stands in for it."""
    found: Fields = {
        "general.basename": hello.basename or model_id,
        "general.parameter_count": hello.n_params,
    }
    if hello.architecture:
        found |= {
            "general.architecture": hello.architecture,
            f"{hello.architecture}.context_length": hello.n_ctx_seq,
        }
        if hello.vectors is not None and "embeddings" in abilities(hello):
            found[f"{hello.architecture}.embedding_length"] = hello.vectors.n_out
    return found


def human(n: int) -> str:
    """Return a count as Ollama writes it: 24B, 7.6B, 494.03M, 22M, 512."""
    for unit, letter, digits in ((10**9, "B", 1), (10**6, "M", 2), (10**3, "K", 0)):
        if n >= unit:
            text = f"{n / unit:.{digits}f}"
            return (text.rstrip("0").rstrip(".") if "." in text else text) + letter
    return str(n)
