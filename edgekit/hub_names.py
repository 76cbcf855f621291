"""Which files of a repository are taken, and why the others are not. Pure.

A repository's list of names comes from outside. A name that could lead out of a folder, or mean
another file on another system, condemns the whole repository; everything else is taken only when
it is weights in a format that cannot run code, or a text that conversion or the licence needs.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from edgekit.errors import BadDataError, MissingInputError, UsageError

MAX_FILES: Final = 20_000
MAX_NAME_BYTES: Final = 255
MAX_DEPTH: Final = 8
MAX_TEXT_BYTES: Final = 256 << 20
"""Of one file that is not weights. The largest vocabulary in use takes 35 MB."""

WEIGHTS: Final = (".safetensors", ".gguf")
PICKLES: Final = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".pickle", ".npy", ".npz", ".h5",
                  ".msgpack", ".joblib", ".nemo")  # fmt: skip
CODE: Final = (".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".sh", ".ipynb", ".exe", ".js")
TEXTS: Final = (
    *("config.json", "generation_config.json", "params.json", "tekken.json"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tokenizer.model.v*"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("chat_template.jinja", "chat_template.json", "*.safetensors.index.json"),
    *("preprocessor_config.json", "processor_config.json", "SYSTEM_PROMPT.txt"),
    *("README.md", "MODEL_CARD.md", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*"),
)
"""Names that conversion reads or that a licence asks to keep with copies."""

_RESERVED: Final = re.compile(r"(?:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(?:\..*)?", re.I)
_SHARD: Final = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.(?:safetensors|gguf))")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file of the repository that is not fetched."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Selection:
    """Names to fetch, in the repository's order, and the rest with reasons."""

    taken: tuple[str, ...]
    left_out: tuple[LeftOut, ...]


def fault_of(name: object) -> str | None:
    """Say what makes a name unsafe as a relative path on any system; None when it is safe."""
    if not isinstance(name, str) or not name:
        return "is no text" if name != "" else "is empty"
    if any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or unicodedata.category(c) == "Cf" for c in name):
        return "holds a control or invisible character"
    if any(0xD800 <= ord(c) < 0xE000 for c in name):
        return "is no Unicode text"
    if "\\" in name or ":" in name:
        return "holds a backslash or a colon, which Windows takes for a path"
    if name.startswith(("/", "~")):
        return "is an absolute path"
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "leads out of its folder" if ".." in parts else "holds an empty part"
    if len(parts) > MAX_DEPTH or any(len(p.encode()) > MAX_NAME_BYTES - 16 for p in parts):
        return "is too long"
    if any(_RESERVED.fullmatch(part) or part.endswith((".", " ")) for part in parts):
        return "means a device or another file on Windows"
    return None


def check_names(names: Iterable[object], where: str) -> list[str]:
    """Return the names. Raises BadDataError for an unsafe one, twins, or far too many."""
    found: list[str] = []
    for name in names:
        if (fault := fault_of(name)) is not None:
            raise BadDataError(
                f"{where} lists the file {_shown(name)}, whose name {fault}",
                code="hostile_name",
                hint="do not use this repository; report it to whoever runs the hub",
            )
        found.append(str(name))
        if len(found) > MAX_FILES:
            raise BadDataError(
                f"{where} lists more than {MAX_FILES:,} files, which no model has",
                code="too_many_files",
                hint="check the repository's name",
            )
    seen: dict[str, str] = {}
    for name in found:
        # On macOS and Windows these are one file.
        key = unicodedata.normalize("NFC", name).casefold()
        other = seen.get(key)
        seen[key] = name
        if other is not None:
            raise BadDataError(
                f"{where} lists {_shown(name)} and {_shown(other)}, which are one file on some "
                "systems",
                code="hostile_name",
                hint="do not use this repository; report it to whoever runs the hub",
            )
    return found


def matches(name: str, pattern: str) -> bool:
    """Shell-style match in which `*` does not cross a folder."""
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def why_not(name: str) -> str | None:
    """Say why a file is never taken, whatever the patterns; None when it may be."""
    base = name.rsplit("/", 1)[-1]
    lower = base.lower()
    if lower.endswith(PICKLES):
        return "pickled or foreign format, which can run code when it is read"
    if lower.endswith(CODE):
        return "program code, never needed and never run"
    if lower.endswith(WEIGHTS) or any(fnmatchcase(base, text) for text in TEXTS):
        return None
    return "neither safetensors nor GGUF nor a text that conversion needs"


def select(names: Sequence[str], allow: Sequence[str], where: str) -> Selection:
    """Choose what to fetch: what `allow` names, or without it what one checkpoint needs.

    Without patterns only the top folder counts, Mistral's own `consolidated` copy is left out
    beside `model*.safetensors`, and so are GGUFs beside safetensors.

    Raises:
        BadDataError: nothing but pickled weights, or shards missing from a set.
        MissingInputError: nothing that could be used, or no weights by these patterns.
        UsageError: several finished files, and none was named.
    """
    taken: list[str] = []
    left_out: list[LeftOut] = []
    converted = any(matches(n, "model*.safetensors") for n in names)
    for name in names:
        reason = why_not(name)
        if reason is None and allow and not any(matches(name, p) for p in allow):
            reason = "not asked for"
        elif reason is None and not allow:
            reason = _superfluous(name, converted)
        if reason is None:
            taken.append(name)
        else:
            left_out.append(LeftOut(name, reason))
    weights = [n for n in taken if n.lower().endswith(WEIGHTS)]
    if not weights and any(x.why.startswith("pickled") for x in left_out):
        worst = next(x.name for x in left_out if x.why.startswith("pickled"))
        raise BadDataError(
            f"{where} holds its weights as {worst} only, which can run code when read; edgekit "
            "never loads such files",
            code="pickle_refused",
            hint="use a repository or revision with safetensors weights",
        )
    patterns = [p for p in allow if p.lower().endswith(WEIGHTS)]
    if not weights and patterns:
        raise MissingInputError(
            f"{where} holds no weights called {' or '.join(patterns)}",
            code="nothing_to_fetch",
            hint="edgekit pull ORG/NAME --dry-run lists what there is",
        )
    models = sorted({_SHARD.sub(r"\1", n) for n in weights if n.lower().endswith(".gguf")})
    if not allow and len(models) > 1:
        shown = ", ".join(models[:8]) + (f" and {len(models) - 8} more" if len(models) > 8 else "")
        raise UsageError(
            f"{where} holds {len(models)} finished files: {shown}",
            code="several_files",
            hint="name the one you want: edgekit pull ORG/NAME/FILE.gguf",
        )
    if not taken:
        raise MissingInputError(
            f"{where} holds no file that could be used",
            code="nothing_to_fetch",
            hint="check the repository's name and revision",
        )
    _check_shards(weights, where)
    return Selection(tuple(taken), tuple(left_out))


def _superfluous(name: str, converted: bool) -> str | None:
    if "/" in name:
        return "in a subfolder: another form of the same weights"
    if converted and fnmatchcase(name, "consolidated*.safetensors"):
        return "the same weights a second time, in Mistral's own layout"
    if converted and name.lower().endswith(".gguf"):
        return "made from the safetensors, which are fetched"
    return None


def _check_shards(weights: Sequence[str], where: str) -> None:
    """`model-00001-of-00003` says how many there must be."""
    have = set(weights)
    for name in weights:
        if (match := _SHARD.fullmatch(name)) is None:
            continue
        stem, total, suffix = match[1], int(match[3]), match[4]
        for i in range(1, total + 1):
            wanted = f"{stem}-{i:05d}-of-{total:05d}{suffix}"
            if wanted not in have:
                raise BadDataError(
                    f"{where} lacks {wanted}",
                    code="incomplete_repository",
                    hint="use another revision, or add the file to the `allow` patterns",
                )


def _shown(name: object) -> str:
    text = ascii(name)
    return text if len(text) <= 120 else f"{text[:100]}… ({len(text)} characters)"
