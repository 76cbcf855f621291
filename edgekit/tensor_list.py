"""The tensors of a model that llama.cpp runs and edgekit does not convert, from its shape.

For planning only: matrices under the names that llama-quantize's rules look at, so that the
recipe gives their types and bytes. Exact for Mistral Small 4 and Muse Glimmer; for other
families, vectors other than the two norms of a layer are left out, under 0.1 % of the bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgekit.shape import Config, Shape, mixer_pattern, shape, text_config

if TYPE_CHECKING:
    from edgekit_quantize.architectures import RecipeParams, TensorSpec

Tensors = list[tuple[str, tuple[int, ...]]]

_GATED = ("muse-glimmer",)
"""Architectures with a gate as wide as the heads, and two more norms in each layer."""


def listed_tensors(config: Config, arch: str) -> tuple[list[TensorSpec], RecipeParams]:
    """The tensors of a config and what the recipe must know. `arch` is llama.cpp's name.

    Raises:
        BadDataError: see `shape.shape`.
    """
    from edgekit_quantize.architectures import RecipeParams, TensorSpec

    s = shape(config)
    text = text_config(config)
    native = "MXFP4" if _quantized_as(text, config) == "mxfp4" else None
    found: Tensors = [
        ("token_embd.weight", (s.n_embd, s.n_vocab)),
        ("output_norm.weight", (s.n_embd,)),
    ]
    if not text.get("tie_word_embeddings"):
        found.append(("output.weight", (s.n_embd, s.n_vocab)))
    small = text.get("hidden_size_per_layer_input")
    if isinstance(small, int) and small:
        found.append(("per_layer_token_embd.weight", (small * s.n_layer, s.n_vocab)))
    for layer in range(s.n_layer):
        found += [(f"blk.{layer}.{name}", dims) for name, dims in _layer(s, text, arch, layer)]
    n_head_kv = 1 if s.mla else s.n_head_kv
    return (
        [TensorSpec(n, dims, native if "_exps.weight" in n else None) for n, dims in found],
        RecipeParams(arch, s.n_layer, s.n_head, n_head_kv, s.experts.count if s.experts else 0),
    )


def listed_params(config: Config, arch: str) -> int:
    """How many values the listed tensors hold. Raises as `listed_tensors`."""
    return sum(math.prod(tensor.shape) for tensor in listed_tensors(config, arch)[0])


def _quantized_as(*configs: Config) -> object:
    for config in configs:
        given = config.get("quantization_config")
        if isinstance(given, Mapping):
            return given.get("quant_method")
    return None


def _layer(s: Shape, text: Config, arch: str, index: int) -> Tensors:
    if (mixers := mixer_pattern(text, s.n_layer)) is not None:
        return [("attn_norm.weight", (s.n_embd,)), *_mixer(s, text, arch, index, mixers[index])]
    found: Tensors = [("attn_norm.weight", (s.n_embd,)), ("ffn_norm.weight", (s.n_embd,))]
    if s.state and s.state[index]:
        found += _recurrent(s, text)
    elif s.mla:
        found += _latent(s)
    else:
        found += _attention(s, text, arch, index)
    reuses = bool(s.cached) and not s.cached[index]
    return found + _feed_forward(s, index, 2 if reuses and text.get("use_double_wide_mlp") else 1)


def _mixer(s: Shape, text: Config, arch: str, index: int, kind: str) -> Tensors:
    """The one thing that a Nemotron layer is; its feed-forward parts have no gate."""
    if kind == "*":
        return _attention(s, text, arch, index)
    if kind == "M":

        def size(key: str) -> int:
            value = text.get(key)
            return value if isinstance(value, int) else 0

        heads, groups = size("mamba_num_heads"), size("n_groups") * size("ssm_state_size")
        inner = heads * size("mamba_head_dim")
        return [
            ("ssm_in.weight", (s.n_embd, 2 * inner + 2 * groups + heads)),
            ("ssm_out.weight", (inner, s.n_embd)),
        ]
    return [t for t in _feed_forward(s, index, 1) if "gate_" not in t[0] or "inp" in t[0]]


def _attention(s: Shape, text: Config, arch: str, index: int) -> Tensors:
    q, kv = s.n_head * s.head_dim, s.n_head_kv * s.head_dim
    values = True
    if s.global_row is not None and not (s.windows and s.windows[index]):
        wide = text.get("global_head_dim")
        q, kv = s.n_head * (wide if isinstance(wide, int) else s.head_dim), s.global_row
        values = not text.get("attention_k_eq_v")
    # Hybrids with linear layers gate their full layers inside the query matrix.
    gate_in_q = 2 if s.state and text.get("linear_num_key_heads") is not None else 1
    found: Tensors = [
        ("attn_q.weight", (s.n_embd, q * gate_in_q)),
        ("attn_output.weight", (q, s.n_embd)),
    ]
    if not s.cached or s.cached[index]:
        found.append(("attn_k.weight", (s.n_embd, kv)))
        if values:
            found.append(("attn_v.weight", (s.n_embd, kv)))
    if arch in _GATED:
        found += [
            ("attn_gate.weight", (s.n_embd, q)),
            ("attn_q_norm.weight", (s.head_dim,)),
            ("attn_k_norm.weight", (s.head_dim,)),
            ("post_attention_norm.weight", (s.n_embd,)),
            ("post_ffw_norm.weight", (s.n_embd,)),
        ]
    if text.get("attention_bias") or arch == "qwen2":
        found += [("attn_q.bias", (q,)), ("attn_k.bias", (kv,)), ("attn_v.bias", (kv,))]
    return found


def _latent(s: Shape) -> Tensors:
    assert s.mla is not None
    m = s.mla
    width = m.nope + m.rope
    if m.q_rank is None:
        found: Tensors = [("attn_q.weight", (s.n_embd, s.n_head * width))]
    else:
        found = [
            ("attn_q_a.weight", (s.n_embd, m.q_rank)),
            ("attn_q_a_norm.weight", (m.q_rank,)),
            ("attn_q_b.weight", (m.q_rank, s.n_head * width)),
        ]
    return [
        *found,
        ("attn_kv_a_mqa.weight", (s.n_embd, m.kv_rank + m.rope)),
        ("attn_kv_a_norm.weight", (m.kv_rank,)),
        ("attn_k_b.weight", (m.nope, m.kv_rank, s.n_head)),
        ("attn_v_b.weight", (m.kv_rank, m.value, s.n_head)),
        ("attn_output.weight", (s.n_head * m.value, s.n_embd)),
    ]


def _recurrent(s: Shape, text: Config) -> Tensors:
    """Gated delta nets (Qwen3-Next, Qwen3.5) and short convolutions (LFM2)."""

    def size(key: str) -> int:
        value = text.get(key)
        return value if isinstance(value, int) else 0

    keys = size("linear_num_key_heads") * size("linear_key_head_dim")
    values = size("linear_num_value_heads") * size("linear_value_head_dim")
    if not keys:
        return [
            ("shortconv.in_proj.weight", (s.n_embd, 3 * s.n_embd)),
            ("shortconv.out_proj.weight", (s.n_embd, s.n_embd)),
        ]
    return [
        ("attn_qkv.weight", (s.n_embd, 2 * keys + values)),
        ("attn_gate.weight", (s.n_embd, values)),
        ("ssm_beta.weight", (s.n_embd, size("linear_num_value_heads"))),
        ("ssm_alpha.weight", (s.n_embd, size("linear_num_value_heads"))),
        ("ssm_out.weight", (values, s.n_embd)),
    ]


def _feed_forward(s: Shape, index: int, times: int) -> Tensors:
    if s.experts is None or not s.experts.layers[index]:
        wide = s.experts.n_ff_dense if s.experts else s.n_ff
        return _three("", s.n_embd, wide * times, ())
    e = s.experts
    found: Tensors = [("ffn_gate_inp.weight", (s.n_embd, e.count))]
    found += _three("_exps", s.n_embd, e.n_ff, (e.count,))
    return found + (_three("_shexp", s.n_embd, e.n_ff_shared, ()) if e.n_ff_shared else [])


def _three(kind: str, n_embd: int, n_ff: int, more: tuple[int, ...]) -> Tensors:
    return [
        (f"ffn_gate{kind}.weight", (n_embd, n_ff, *more)),
        (f"ffn_up{kind}.weight", (n_embd, n_ff, *more)),
        (f"ffn_down{kind}.weight", (n_ff, n_embd, *more)),
    ]
