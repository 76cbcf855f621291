"""Qwen3 and Qwen3-Coder with experts: GGUF architecture `qwen3moe`."""

from __future__ import annotations

from edgekit_quantize.architectures.dense import DenseArchitecture
from edgekit_quantize.architectures.experts import ExpertNames, MoeArchitecture

CLASSES = ("Qwen3MoeForCausalLM",)
MODEL_TYPES = ("qwen3_moe",)

QWEN3MOE = MoeArchitecture(
    dense=DenseArchitecture(
        name="qwen3moe",
        permuted=False,
        qkv_bias=None,
        head_dim_keys=True,
        vocab_keys=False,
        qk_norm=True,
    ),
    names=ExpertNames(router="mlp.gate", each="mlp.experts.{}", stacked="mlp.experts"),
    ffn_key="moe_intermediate_size",
    count_keys=("num_experts", "num_local_experts"),
    width_key=True,
    normalised=True,
)
