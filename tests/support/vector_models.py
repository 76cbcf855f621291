"""Tiny synthetic GGUFs around embeddings: encoders, rerankers, LoRA adapters and merged models."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from tests.support import gguf_models
from tests.support.gguf_models import HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYERS, write_model

RANK = 4
LORA_ALPHA = 8.0
WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]",
    *(f"\u2581{c}" for c in "abcdefghijklmnopqrstuvwxyz"), *"abcdefghijklmnopqrstuvwxyz",
    "\u2581cat", "\u2581dog", "\u2581the",
]  # fmt: skip
RERANK = "<s>[INST]{query}[/INST]{document}</s>"
Pair = tuple[NDArray[np.float32], NDArray[np.float32]]


def write_bert(
    path: Path, *, pooling: gguf.PoolingType | None, head: bool = False, n_ctx: int = 64
) -> Path:
    """Write a two-layer encoder in BERT's shape; `head`: it scores pairs."""
    rng = np.random.default_rng(5)
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name("tiny-bert")
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(WORDS)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if word.startswith("[") else normal for word in WORDS])
    writer.add_token_type_count(2)
    for role, word in (("pad", 0), ("unk", 1), ("cls", 2), ("bos", 2), ("sep", 3), ("mask", 4)):
        key = {"pad": "padding", "unk": "unknown", "sep": "seperator"}.get(role, role)
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", word)

    def add(name: str, *shape: int, gain: float = 1.0) -> None:
        data = rng.standard_normal(shape, np.float32) * np.float32(gain / np.sqrt(shape[-1]))
        writer.add_tensor(name, data)

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(32, np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(32, np.float32))

    add("token_embd.weight", len(WORDS), 32, gain=4.0)
    add("token_types.weight", 2, 32)
    add("position_embd.weight", n_ctx, 32)
    norm("token_embd_norm")
    for i in range(2):
        for part in ("q", "k", "v", "output"):
            add(f"blk.{i}.attn_{part}.weight", 32, 32, gain=2.0)
        norm(f"blk.{i}.attn_output_norm")
        add(f"blk.{i}.ffn_up.weight", 64, 32)
        add(f"blk.{i}.ffn_down.weight", 32, 64)
        norm(f"blk.{i}.layer_output_norm")
    if head:
        add("cls.weight", 32, 32)
        add("cls.output.weight", 1, 32, gain=3.0)
        writer.add_tensor("cls.output.bias", np.zeros(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_reranker(path: Path) -> Path:
    """Write a decoder that ranks, in Qwen3's shape, with a template of its own."""

    def extra(writer: gguf.GGUFWriter) -> None:
        rng = np.random.default_rng(3)
        writer.add_pooling_type(gguf.PoolingType.RANK)
        writer.add_classifier_output_labels(["yes", "no"])
        writer.add_string("tokenizer.chat_template.rerank", RERANK)
        writer.add_tensor("cls.output.weight", rng.standard_normal((2, HIDDEN), np.float32))
        for i in range(LAYERS):
            for part in ("q", "k"):
                writer.add_tensor(f"blk.{i}.attn_{part}_norm.weight", np.ones(HEAD_DIM, np.float32))

    return write_model(path, arch="qwen3", extra=extra)


def lora_pairs(seed: int) -> dict[str, Pair]:
    """Return (A, B) per matrix: A is rank x inputs, B is outputs x rank."""
    rng = np.random.default_rng(seed)
    shapes = {
        "attn_q": (HEADS * HEAD_DIM, HIDDEN),
        "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
        "ffn_down": (HIDDEN, gguf_models.FFN),
    }
    return {
        f"blk.{i}.{name}.weight": (
            rng.standard_normal((RANK, n_in), np.float32) / np.float32(np.sqrt(n_in)),
            rng.standard_normal((n_out, RANK), np.float32),
        )
        for i in range(LAYERS)
        for name, (n_out, n_in) in shapes.items()
    }


def write_lora(path: Path, seed: int, *, arch: str = "llama") -> Path:
    """Write an adapter for `write_model`'s model."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, LORA_ALPHA)
    for name, (a, b) in lora_pairs(seed).items():
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_merged(path: Path, seed: int, scale: float = 1.0) -> Path:
    """Write the model with an adapter added into its matrices: W + scale alpha/rank B A."""
    pairs = lora_pairs(seed)

    def edit(name: str, data: NDArray[np.float32]) -> NDArray[np.float32]:
        if name not in pairs:
            return data
        a, b = pairs[name]
        return (data + np.float32(scale * LORA_ALPHA / RANK) * (b @ a)).astype(np.float32)

    return write_model(path, edit=edit)
