"""Checkpoints of any size that take no room: real headers, and holes where the weights would be."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.cli import POCKET

Shapes = dict[str, tuple[int, ...]]


def sparse_checkpoint(folder: Path, config: Mapping[str, Any], shards: int) -> Path:
    """Write a Llama-shaped BF16 checkpoint whose values are all zero, with pocket's vocabulary.

    The files have their full logical size; the file system stores only their headers.
    """
    folder.mkdir(parents=True)
    shapes = _llama_shapes(config)
    per_shard = math.ceil(sum(map(math.prod, shapes.values())) / shards)
    groups: list[Shapes] = [{}]
    for name, shape in shapes.items():
        if sum(map(math.prod, groups[-1].values())) >= per_shard:
            groups.append({})
        groups[-1][name] = shape
    for number, group in enumerate(groups, 1):
        _write(folder / f"model-{number:05d}-of-{len(groups):05d}.safetensors", group)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((POCKET / name).read_bytes())
    return folder


def _llama_shapes(config: Mapping[str, Any]) -> Shapes:
    d, ffn, vocab = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    shapes: Shapes = {"model.embed_tokens.weight": (vocab, d)}
    for i in range(config["num_hidden_layers"]):
        block = {
            "input_layernorm": (d,),
            "self_attn.q_proj": (q, d),
            "self_attn.k_proj": (kv, d),
            "self_attn.v_proj": (kv, d),
            "self_attn.o_proj": (d, q),
            "post_attention_layernorm": (d,),
            "mlp.gate_proj": (ffn, d),
            "mlp.up_proj": (ffn, d),
            "mlp.down_proj": (d, ffn),
        }
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in block.items()}
    return shapes | {"model.norm.weight": (d,), "lm_head.weight": (vocab, d)}


def _write(path: Path, shapes: Shapes) -> None:
    header: dict[str, object] = {}
    at = 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
