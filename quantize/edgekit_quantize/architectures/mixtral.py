"""Mixtral: GGUF architecture `llama` with experts, whose width is the dense one."""

from __future__ import annotations

from edgekit_quantize.architectures.dense import DenseArchitecture
from edgekit_quantize.architectures.experts import ExpertNames, MoeArchitecture

CLASSES = ("MixtralForCausalLM",)
MODEL_TYPES = ("mixtral",)

MIXTRAL = MoeArchitecture(
    dense=DenseArchitecture(
        name="llama", permuted=True, qkv_bias=None, head_dim_keys=True, vocab_keys=True
    ),
    names=ExpertNames(
        router="block_sparse_moe.gate",
        each="block_sparse_moe.experts.{}",
        stacked="mlp.experts",
        gate="w1",
        up="w3",
        down="w2",
        stacked_router="mlp.gate",
    ),
    ffn_key="intermediate_size",
    count_keys=("num_local_experts", "num_experts"),
    width_key=False,
)
