"""Qwen3 without experts: GGUF architecture `qwen3`. Q and K are normalised, nothing has a bias."""

from __future__ import annotations

from edgekit_quantize.architectures.dense import DenseArchitecture

CLASSES = ("Qwen3ForCausalLM",)
MODEL_TYPES = ("qwen3",)

QWEN3 = DenseArchitecture(
    name="qwen3", permuted=False, qkv_bias=None, head_dim_keys=True, vocab_keys=False, qk_norm=True
)
