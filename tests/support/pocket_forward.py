"""pocket's network in plain numpy, float32: an account of it that shares no code with llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.support.pocket import SOURCE

Array = npt.NDArray[np.float32]
Weights = dict[str, Array]


def read_weights(folder: Path = SOURCE) -> Weights:
    """Read the BF16 shards by hand."""
    found: Weights = {}
    for shard in sorted(folder.glob("*.safetensors")):
        raw = shard.read_bytes()
        size = int.from_bytes(raw[:8], "little")
        for name, entry in json.loads(raw[8 : 8 + size]).items():
            if name == "__metadata__":
                continue
            first, last = entry["data_offsets"]
            words = np.frombuffer(raw[8 + size + first : 8 + size + last], "<u2")
            values = (words.astype(np.uint32) << 16).view(np.float32)
            found[name] = values.reshape(entry["shape"])
    return found


def forward(weights: Weights, ids: list[int], see: Callable[[str, Array], None]) -> Array:
    """Return logits [ids, vocabulary]; `see(name, inputs)` is given what each weight multiplies."""
    config = json.loads((SOURCE / "config.json").read_text())
    heads, kv_heads, size = (
        config[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    n = len(ids)

    def times(name: str, inputs: Array) -> Array:
        see(name, inputs)
        return inputs @ weights[f"{name}.weight"].T

    def norm(name: str, x: Array) -> Array:
        scale = np.sqrt((x * x).mean(axis=-1, keepdims=True) + config["rms_norm_eps"])
        return np.asarray(x / scale * weights[f"{name}.weight"])

    half = np.arange(size // 2) / (size // 2)
    angles = np.arange(n)[:, None] * config["rope_theta"] ** -half
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def turned(x: Array, count: int) -> Array:
        x = x.reshape(n, count, size)
        a, b = x[..., : size // 2], x[..., size // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(np.float32)

    mask = np.triu(np.full((n, n), -np.inf), 1)
    x = weights["model.embed_tokens.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}"
        h = norm(f"{at}.input_layernorm", x)
        q = turned(times(f"{at}.self_attn.q_proj", h), heads)
        k = turned(times(f"{at}.self_attn.k_proj", h), kv_heads)
        v = times(f"{at}.self_attn.v_proj", h).reshape(n, kv_heads, size)
        k, v = (np.repeat(t, heads // kv_heads, axis=1) for t in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(size) + mask
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", scores, v).reshape(n, -1).astype(np.float32)
        x = x + times(f"{at}.self_attn.o_proj", mixed)
        h = norm(f"{at}.post_attention_layernorm", x)
        gate, up = times(f"{at}.mlp.gate_proj", h), times(f"{at}.mlp.up_proj", h)
        x = x + times(f"{at}.mlp.down_proj", gate / (1 + np.exp(-gate)) * up)
    return times("lm_head", norm("model.norm", x))
