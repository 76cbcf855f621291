"""Llama and Mistral: GGUF architecture `llama`."""

from __future__ import annotations

from edgekit_quantize.architectures.dense import DenseArchitecture

CLASSES = ("LlamaForCausalLM", "MistralForCausalLM")
MODEL_TYPES = ("llama", "mistral")

LLAMA = DenseArchitecture(
    name="llama", permuted=True, qkv_bias=None, head_dim_keys=True, vocab_keys=True
)
