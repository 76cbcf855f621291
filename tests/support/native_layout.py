"""The same weights in Mistral's own layout: params.json, consolidated.safetensors, tekken.json."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.support.checkpoints import (
    CHAT_TEMPLATE,
    CONTROL_TOKENS,
    TEKKEN_SPLIT,
    StoredTensor,
    byte_alphabet,
    write_safetensors,
)

_PLAIN = {
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
}
_LAYER = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
_VISION = {
    "attention.q_proj": "attention.wq",
    "attention.k_proj": "attention.wk",
    "attention.v_proj": "attention.wv",
    "attention.o_proj": "attention.wo",
    "gate_proj": "w1",
    "down_proj": "w2",
    "up_proj": "w3",
}
_PROJECTOR = {
    "linear_1": "vision_language_adapter.w_in",
    "linear_2": "vision_language_adapter.w_out",
    "norm": "pre_mm_projector_norm",
    "patch_merger.merging_layer": "patch_merger.merging_layer",
}
_ENDINGS = {"weight_scale_inv": "qscale_weight", "activation_scale": "qscale_act"}
_WORDS = {"BF16": np.uint16, "F32": np.uint32, "F8_E4M3": np.uint8}


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return every tensor of the folder's safetensors files."""
    found: dict[str, StoredTensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        raw = path.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        for name, entry in json.loads(raw[8:start]).items():
            if name != "__metadata__":
                first, last = (start + offset for offset in entry["data_offsets"])
                found[name] = (entry["dtype"], entry["shape"], raw[first:last])
    return found


def native_name(name: str) -> str:
    """Return the native name of a tensor."""
    base, ending = name.rsplit(".", 1)
    ending = _ENDINGS.get(ending, ending)
    base = base.removeprefix("language_model.")
    if base.startswith("vision_tower."):
        base = base.removeprefix("vision_tower.")
        for theirs, ours in _VISION.items():
            base = base.replace(theirs, ours)
        return f"vision_encoder.{base}.{ending}"
    if base.startswith("multi_modal_projector."):
        return f"{_PROJECTOR[base.removeprefix('multi_modal_projector.')]}.{ending}"
    if base in _PLAIN:
        return f"{_PLAIN[base]}.{ending}"
    _, layers, number, rest = base.split(".", 3)
    return f"{layers}.{number}.{_LAYER[rest]}.{ending}"


def neighbours(values: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Put rows from halves of a head next to each other, as the published code rotates them."""
    length = len(values) // heads
    order = [
        head * length + j + half * (length // 2)
        for head in range(heads)
        for j in range(length // 2)
        for half in (0, 1)
    ]
    return values[order]


def _rotated_heads(name: str, params: Mapping[str, Any]) -> int:
    """Return how many heads a matrix of Q or K has, 0 for any other tensor."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return 0
    if "vision_tower" in name:
        return int(params["vision_encoder"]["num_attention_heads"])
    return int(params["n_heads" if name.endswith("q_proj.weight") else "n_kv_heads"])


def write_native(source: Path, folder: Path, params: Mapping[str, Any]) -> Path:
    """Write the Hugging Face checkpoint `source` into `folder` (created) in native layout."""
    folder.mkdir(parents=True)
    tensors: dict[str, StoredTensor] = {}
    for name, (dtype, shape, data) in read_tensors(source).items():
        if heads := _rotated_heads(name, params):
            values = np.frombuffer(data, _WORDS[dtype]).reshape(shape)
            data = neighbours(values, heads).tobytes()
        tensors[native_name(name)] = (dtype, shape, data)
    write_safetensors(folder / "consolidated.safetensors", tensors)
    (folder / "params.json").write_text(json.dumps(params))
    write_tekken(source, folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


def write_tekken(source: Path, folder: Path) -> None:
    """Write the vocabulary of the synthetic tokenizer.json in `source` as tekken.json."""
    vocab = json.loads((source / "tokenizer.json").read_text())["model"]["vocab"]
    bytes_of = {letter: byte for byte, letter in enumerate(byte_alphabet())}
    n_control = len(CONTROL_TOKENS)
    ranked = [bytes(bytes_of[letter] for letter in text) for text in list(vocab)[n_control:]]
    tekken = {
        "config": {
            "pattern": TEKKEN_SPLIT,
            "num_vocab_tokens": len(ranked),
            "default_vocab_size": len(vocab),
            "default_num_special_tokens": n_control,
            "version": "v7",
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for rank, token in enumerate(ranked)
        ],
        "special_tokens": [
            {"rank": rank, "token_str": text, "is_control": True}
            for rank, text in enumerate(CONTROL_TOKENS)
        ],
    }
    (folder / "tekken.json").write_text(json.dumps(tekken))
