"""Tiny synthetic GGUFs whose memory cannot be cut anywhere: a window, a state, and both kinds.

Random F32 weights and the vocabulary of gguf_models, in the shapes of Cohere 2 (sliding
window), Mamba (recurrent) and LFM2 (attention and convolution states).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

from tests.support.gguf_models import CONTROL, MERGES, vocabulary

HIDDEN, HEADS, KV_HEADS, FFN = 64, 4, 2, 128
WINDOW = 32
Add = Callable[..., None]


def write_window(path: Path) -> Path:
    """Four layers, the first three with a window of 32 tokens."""
    writer = _writer(path, "cohere2", 4)
    _attention(writer)
    writer.add_sliding_window(WINDOW)
    writer.add_logit_scale(0.5)
    writer.add_layer_norm_eps(1e-5)
    add = _adder(writer)
    add("token_embd.weight", len(vocabulary()), HIDDEN, gain=1.0)
    _norm(writer, "output_norm.weight")
    for i in range(4):
        _norm(writer, f"blk.{i}.attn_norm.weight")
        _attention_layer(add, i)
        _ffn_layer(add, i)
    return _close(writer, path)


def write_recurrent(path: Path) -> Path:
    """Two layers that keep a running state and nothing else."""
    inner, state, rank, kernel = 2 * HIDDEN, 8, 4, 4
    writer = _writer(path, "mamba", 2)
    writer.add_head_count(0)
    writer.add_feed_forward_length(0)
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    writer.add_layer_norm_rms_eps(1e-5)
    add = _adder(writer)
    add("token_embd.weight", len(vocabulary()), HIDDEN, gain=8.0)
    _norm(writer, "output_norm.weight")
    for i in range(2):
        _norm(writer, f"blk.{i}.attn_norm.weight")
        add(f"blk.{i}.ssm_in.weight", 2 * inner, HIDDEN, gain=2.0)
        add(f"blk.{i}.ssm_conv1d.weight", inner, kernel)
        add(f"blk.{i}.ssm_conv1d.bias", inner)
        add(f"blk.{i}.ssm_x.weight", rank + 2 * state, inner)
        add(f"blk.{i}.ssm_dt.weight", inner, rank)
        add(f"blk.{i}.ssm_dt.bias", inner)
        decay = -np.tile(np.arange(1, state + 1, dtype=np.float32), (inner, 1))
        writer.add_tensor(f"blk.{i}.ssm_a", decay)
        writer.add_tensor(f"blk.{i}.ssm_d", np.ones(inner, np.float32))
        add(f"blk.{i}.ssm_out.weight", HIDDEN, inner)
    return _close(writer, path)


def write_hybrid(path: Path) -> Path:
    """Four layers, attention in the second and the fourth, a convolution state in the others."""
    kernel = 3
    writer = _writer(path, "lfm2", 4)
    _attention(writer, kv_heads=[0, KV_HEADS, 0, KV_HEADS])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_shortconv_l_cache(kernel)
    add = _adder(writer)
    add("token_embd.weight", len(vocabulary()), HIDDEN, gain=8.0)
    _norm(writer, "token_embd_norm.weight")
    for i in range(4):
        _norm(writer, f"blk.{i}.attn_norm.weight")
        _norm(writer, f"blk.{i}.ffn_norm.weight")
        _ffn_layer(add, i)
        if i % 2:
            _attention_layer(add, i)
            head = np.ones(HIDDEN // HEADS, np.float32)
            writer.add_tensor(f"blk.{i}.attn_q_norm.weight", head)
            writer.add_tensor(f"blk.{i}.attn_k_norm.weight", head)
        else:
            add(f"blk.{i}.shortconv.conv.weight", HIDDEN, kernel)
            add(f"blk.{i}.shortconv.in_proj.weight", 3 * HIDDEN, HIDDEN, gain=2.0)
            add(f"blk.{i}.shortconv.out_proj.weight", HIDDEN, HIDDEN)
    return _close(writer, path)


def _writer(path: Path, architecture: str, n_layers: int) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, architecture)
    tokens = vocabulary()
    writer.add_context_length(2048)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(n_layers)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("tekken")
    writer.add_token_list(tokens)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if t in CONTROL else normal for t in tokens])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    return writer


def _attention(writer: gguf.GGUFWriter, kv_heads: list[int] | int = KV_HEADS) -> None:
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)


def _attention_layer(add: Add, i: int) -> None:
    kv = KV_HEADS * HIDDEN // HEADS
    add(f"blk.{i}.attn_q.weight", HIDDEN, HIDDEN, gain=2.0)
    add(f"blk.{i}.attn_k.weight", kv, HIDDEN, gain=2.0)
    add(f"blk.{i}.attn_v.weight", kv, HIDDEN, gain=3.0)
    add(f"blk.{i}.attn_output.weight", HIDDEN, HIDDEN, gain=3.0)


def _ffn_layer(add: Add, i: int) -> None:
    add(f"blk.{i}.ffn_gate.weight", FFN, HIDDEN)
    add(f"blk.{i}.ffn_up.weight", FFN, HIDDEN)
    add(f"blk.{i}.ffn_down.weight", HIDDEN, FFN, gain=2.0)


def _adder(writer: gguf.GGUFWriter) -> Add:
    rng = np.random.default_rng(3)

    def add(name: str, *shape: int, gain: float = 1.0) -> None:
        data = rng.standard_normal(shape, np.float32) * np.float32(gain / np.sqrt(shape[-1]))
        writer.add_tensor(name, data)

    return add


def _norm(writer: gguf.GGUFWriter, name: str) -> None:
    writer.add_tensor(name, np.ones(HIDDEN, np.float32))


def _close(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
