"""Small mixture-of-experts checkpoints in Hugging Face layout: random weights, seeded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.support.checkpoints import write_safetensors, write_tokenizer

VOCAB = 300


def qwen3moe(
    folder: Path, *, hidden: int = 256, ffn: int = 96, experts: int = 4, layers: int = 3
) -> Path:
    """Qwen3's mixture: Q and K normalised, each expert's matrices by themselves."""
    folder.mkdir(parents=True)
    heads, kv, dim = 4, 2, 64
    config: dict[str, object] = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "head_dim": dim,
        "intermediate_size": 2 * ffn,
        "moe_intermediate_size": ffn,
        "num_experts": experts,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "vocab_size": VOCAB,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e7,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (VOCAB, hidden),
    }
    for i in range(layers):
        base = f"model.layers.{i}"
        shapes |= {
            f"{base}.input_layernorm.weight": (hidden,),
            f"{base}.post_attention_layernorm.weight": (hidden,),
            f"{base}.self_attn.q_norm.weight": (dim,),
            f"{base}.self_attn.k_norm.weight": (dim,),
            f"{base}.self_attn.q_proj.weight": (heads * dim, hidden),
            f"{base}.self_attn.k_proj.weight": (kv * dim, hidden),
            f"{base}.self_attn.v_proj.weight": (kv * dim, hidden),
            f"{base}.self_attn.o_proj.weight": (hidden, heads * dim),
            f"{base}.mlp.gate.weight": (experts, hidden),
        }
        for e in range(experts):
            shapes[f"{base}.mlp.experts.{e}.gate_proj.weight"] = (ffn, hidden)
            shapes[f"{base}.mlp.experts.{e}.up_proj.weight"] = (ffn, hidden)
            shapes[f"{base}.mlp.experts.{e}.down_proj.weight"] = (hidden, ffn)
    return _write(folder, config, shapes)


def mixtral(folder: Path, *, hidden: int = 256, ffn: int = 512, layers: int = 8) -> Path:
    """Mixtral with its eight experts."""
    folder.mkdir(parents=True)
    config: dict[str, object] = {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": ffn,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "vocab_size": VOCAB,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (VOCAB, hidden),
    }
    for i in range(layers):
        base = f"model.layers.{i}"
        shapes |= {
            f"{base}.{norm}.weight": (hidden,)
            for norm in ("input_layernorm", "post_attention_layernorm")
        }
        shapes |= {f"{base}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        shapes[f"{base}.block_sparse_moe.gate.weight"] = (8, hidden)
        for e in range(8):
            expert = f"{base}.block_sparse_moe.experts.{e}"
            shapes[f"{expert}.w1.weight"] = shapes[f"{expert}.w3.weight"] = (ffn, hidden)
            shapes[f"{expert}.w2.weight"] = (hidden, ffn)
    return _write(folder, config, shapes)


def _write(folder: Path, config: dict[str, object], shapes: dict[str, tuple[int, ...]]) -> Path:
    rng = np.random.default_rng(3)
    tensors = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5)
        words = (values.view(np.uint32) >> 16).astype(np.uint16)
        tensors[name] = ("BF16", shape, words.tobytes())
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, VOCAB)
    return folder
