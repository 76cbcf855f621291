"""Qwen2 and Qwen2.5: GGUF architecture `qwen2`. Q, K and V always carry a bias."""

from __future__ import annotations

from edgekit_quantize.architectures.dense import DenseArchitecture

CLASSES = ("Qwen2ForCausalLM",)
MODEL_TYPES = ("qwen2",)

QWEN2 = DenseArchitecture(
    name="qwen2", permuted=False, qkv_bias=True, head_dim_keys=False, vocab_keys=False
)
