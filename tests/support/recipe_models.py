"""Tensor lists of mixtures of experts, and skeleton GGUFs: a real header, holes for weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from edgekit_quantize.architectures import RecipeParams, TensorSpec, quantize_order
from edgekit_quantize.gguf_write import encode_header, lay_out
from edgekit_quantize.metadata import KeyValue, f32, string, u32
from edgekit_quantize.recipe import stored_type
from edgekit_quantize.tensor_types import align

Model = tuple[list[TensorSpec], RecipeParams]


def write_skeleton(path: Path, keys: Sequence[KeyValue], specs: Sequence[TensorSpec]) -> Path:
    """Write a GGUF whose tensors have their stored types and no bytes on the disk."""
    tensors = lay_out(specs, [stored_type(spec) for spec in specs])
    header = encode_header(keys, tensors)
    path.write_bytes(header)
    os.truncate(path, len(header) + align(tensors[-1].offset + tensors[-1].bytes))
    return path


def mixture_keys(params: RecipeParams, hidden: int, ffn: int, **more: int) -> list[KeyValue]:
    """The keys that llama.cpp wants before it looks at tensors, for `llama` and `qwen3moe`."""
    numbers = {
        "block_count": params.n_layer,
        "context_length": 4096,
        "embedding_length": hidden,
        "feed_forward_length": ffn,
        "attention.head_count": params.n_head,
        "attention.head_count_kv": params.n_head_kv,
        "expert_count": params.n_expert,
        "expert_used_count": 2,
        "expert_feed_forward_length": ffn,
        "vocab_size": 1000,
        **more,
    }
    return [
        string("general.architecture", params.arch),
        *(u32(f"{params.arch}.{name}", value) for name, value in numbers.items()),
        f32(f"{params.arch}.attention.layer_norm_rms_epsilon", 1e-5),
    ]


def mixture(
    params: RecipeParams, hidden: int, dim: int, ffn: int, vocab: int, *, shared: int = 0
) -> list[TensorSpec]:
    """A mixture of experts with plain attention, in the order of the file."""
    q, kv, n = params.n_head * dim, params.n_head_kv * dim, params.n_expert
    block: dict[str, tuple[int, ...]] = {
        "attn_k": (hidden, kv),
        "attn_norm": (hidden,),
        "attn_output": (q, hidden),
        "attn_q": (hidden, q),
        "attn_v": (hidden, kv),
        "ffn_down_exps": (ffn, hidden, n),
        "ffn_gate_exps": (hidden, ffn, n),
        "ffn_gate_inp": (hidden, n),
        "ffn_norm": (hidden,),
        "ffn_up_exps": (hidden, ffn, n),
    }
    if shared:
        block["ffn_down_shexp"] = (shared, hidden)
        block["ffn_gate_shexp"] = block["ffn_up_shexp"] = (hidden, shared)
    return _model(hidden, vocab, [block] * params.n_layer)


def deepseek_v3() -> Model:
    """DeepSeek V3.1 as llama.cpp stores it: MLA in two parts, three dense blocks first."""
    hidden, n = 7168, 256
    attention: dict[str, tuple[int, ...]] = {
        "attn_k_b": (128, 512, 128),
        "attn_kv_a_mqa": (hidden, 576),
        "attn_output": (16384, hidden),
        "attn_q_a": (hidden, 1536),
        "attn_q_b": (1536, 24576),
        "attn_v_b": (512, 128, 128),
    }
    dense = {"ffn_down": (18432, hidden), "ffn_gate": (hidden, 18432), "ffn_up": (hidden, 18432)}
    experts = {
        "ffn_down_exps": (2048, hidden, n),
        "ffn_down_shexp": (2048, hidden),
        "ffn_gate_exps": (hidden, 2048, n),
        "ffn_gate_inp": (hidden, n),
        "ffn_gate_shexp": (hidden, 2048),
        "ffn_up_exps": (hidden, 2048, n),
        "ffn_up_shexp": (hidden, 2048),
    }
    blocks = [attention | (dense if i < 3 else experts) for i in range(61)]
    return _model(hidden, 129280, blocks), RecipeParams("deepseek2", 61, 128, 1, n_expert=n)


def gpt_oss_120b() -> Model:
    """gpt-oss 120B, its experts taken for plain floats."""
    params = RecipeParams("gpt-oss", 36, 64, 8, n_expert=128)
    return mixture(params, 2880, 64, 2880, 201088), params


def _model(
    hidden: int, vocab: int, blocks: Sequence[dict[str, tuple[int, ...]]]
) -> list[TensorSpec]:
    specs = [TensorSpec(f"{name}.weight", (hidden, vocab)) for name in ("output", "token_embd")]
    specs.append(TensorSpec("output_norm.weight", (hidden,)))
    for i, block in enumerate(blocks):
        specs += [TensorSpec(f"blk.{i}.{name}.weight", shape) for name, shape in block.items()]
    return sorted(specs, key=lambda spec: quantize_order(spec.name))
