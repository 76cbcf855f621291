"""The `general.*` keys: what the model is called, how big it is, how it likes to be sampled."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgekit_quantize.checkpoint import read_json
from edgekit_quantize.gguf_header import GgufTensor
from edgekit_quantize.metadata import KeyValue, f32, i32, string

_SAMPLING = (
    ("top_k", "top_k", True),
    ("top_p", "top_p", False),
    ("min_p", "min_p", False),
    ("xtc_probability", "xtc_probability", False),
    ("xtc_threshold", "xtc_threshold", False),
    ("temp", "temperature", False),
    ("penalty_last_n", "penalty_last_n", True),
    ("penalty_repeat", "repetition_penalty", False),
)
"""GGUF key, generation_config.json key, is it an integer."""

_LICENCE_KEYS = {
    "license": "license",
    "license_name": "license.name",
    "license_link": "license.link",
}


def general_metadata(
    folder: Path, arch: str, tensors: Sequence[GgufTensor], name: str | None
) -> list[KeyValue]:
    """Return the `general.*` keys in the order of llama.cpp's converter.

    `name` is the model's name, by default made from the folder's. Licence keys come from the
    front matter of the model card, sampling defaults from generation_config.json. Raises as
    `read_json` does.
    """
    kind = "mmproj" if arch == "clip" else "model"
    keys = [string("general.architecture", arch), string("general.type", kind)]
    generation = folder / "generation_config.json"
    if generation.is_file():
        keys.extend(_sampling_keys(read_json(generation)))
    keys.append(string("general.name", title(folder.resolve().name) if name is None else name))
    keys.append(string("general.size_label", size_label(tensors)))
    for field, value in card_fields(folder / "README.md").items():
        keys.append(string(f"general.{_LICENCE_KEYS[field]}", value))
    return keys


def _sampling_keys(generation: Mapping[str, object]) -> list[KeyValue]:
    keys = []
    for ours, theirs, whole in _SAMPLING:
        value = generation.get(theirs)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if whole and isinstance(value, int) and -(2**31) <= value < 2**31:
            keys.append(i32(f"general.sampling.{ours}", value))
        elif not whole and abs(value) < 1e30:
            keys.append(f32(f"general.sampling.{ours}", value))
    return keys


def title(folder_name: str) -> str:
    """Return a readable name: `my-model-v1-7b` becomes `My Model v1 7b`."""
    words = folder_name.strip().replace("-", " ").split()
    keep = re.compile(r"v\d+(\.\d+)*|\d.*")
    return " ".join(w.title() if w.islower() and not keep.fullmatch(w) else w for w in words)


def size_label(tensors: Sequence[GgufTensor]) -> str:
    """Return the parameter count in two digits or more: 23572403200 becomes `24B`.

    A mixture of experts is called by their number and the size of a model with one: `16x17B`.
    """
    stacked = [t.shape for t in tensors if "_exps." in t.name and len(t.shape) > 2]
    total = sum(math.prod(tensor.shape) for tensor in tensors)
    idle = sum(math.prod(shape) // shape[2] * (shape[2] - 1) for shape in stacked)
    if not stacked:
        return _rounded(total)
    return f"{sum(shape[2] for shape in stacked) // len(stacked)}x{_rounded(total - idle)}"


def _rounded(count: int) -> str:
    scales = ((1e12, 1e-12, "T"), (1e9, 1e-9, "B"), (1e6, 1e-6, "M"), (-1, 1e-3, "K"))
    scale, suffix = next((scale, suffix) for limit, scale, suffix in scales if count > limit)
    scaled = count * scale
    digits = max(2 - len(str(round(scaled)).lstrip("0")), 0)
    return f"{scaled:.{digits}f}{suffix}"


def card_fields(card: Path) -> dict[str, str]:
    """Return the licence fields of a model card's front matter (`---` lines at its start).

    Only plain `key: value` lines are read; anything else there is not ours to interpret.
    """
    if not card.is_file():
        return {}
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0] != "---":
        return {}
    found: dict[str, str] = {}
    for line in lines[1:]:
        if line == "---":
            return {key: found[key] for key in _LICENCE_KEYS if key in found}
        key, colon, value = line.partition(":")
        text = value.strip().strip("\"'")
        if colon and key in _LICENCE_KEYS and text:
            found[key] = text
    return {}
