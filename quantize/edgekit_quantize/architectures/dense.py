"""Decoder-only transformers with gated feed-forward layers: what Llama and Qwen2 share.

Names and shapes follow the `*ForCausalLM` classes of transformers; the GGUF side follows
llama.cpp's conversion of the same models.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgekit_quantize.architectures.base import (
    Config,
    RecipeParams,
    TensorSource,
    TensorSpec,
    bad_config,
    flag,
    integer,
    listed,
    number,
    plain,
    quantize_order,
)
from edgekit_quantize.architectures.rope import rope_factors, rope_metadata, rope_parameters
from edgekit_quantize.architectures.views import View, rope_pairs
from edgekit_quantize.errors import BadCheckpointError
from edgekit_quantize.metadata import KeyValue, f32, u32

MAX_LAYERS = 512
"""llama.cpp's LLAMA_MAX_LAYERS; also keeps a hostile config from asking for a huge list."""

_UNUSED = (".rotary_emb.inv_freq", ".attention.masked_bias", ".attention.bias")


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers of one model, checked."""

    n_layer: int
    hidden: int
    n_head: int
    n_head_kv: int
    head_dim: int
    ffn: int
    vocab: int


def read_shape(config: Config) -> Shape:
    """Read and check the shape. Raises BadCheckpointError (code `bad_config`)."""
    hidden = integer(config, "hidden_size")
    n_head = integer(config, "num_attention_heads")
    n_head_kv = integer(config, "num_key_value_heads", default=n_head)
    if n_head % n_head_kv:
        raise bad_config(f"config.json: {n_head} heads cannot share {n_head_kv} key-value heads")
    if config.get("head_dim") is None and hidden % n_head:
        raise bad_config(f"config.json: hidden_size {hidden} is no multiple of {n_head} heads")
    head_dim = integer(config, "head_dim", default=hidden // n_head)
    if head_dim % 2:
        raise bad_config(f"config.json: head_dim {head_dim} is odd, rotary positions need pairs")
    n_layer = integer(config, "num_hidden_layers")
    if n_layer > MAX_LAYERS:
        raise bad_config(f"config.json: {n_layer} layers, llama.cpp takes at most {MAX_LAYERS}")
    return Shape(
        n_layer=n_layer,
        hidden=hidden,
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        ffn=integer(config, "intermediate_size"),
        vocab=integer(config, "vocab_size"),
    )


@dataclass(frozen=True, slots=True)
class DenseArchitecture:
    """One family of this shape.

    `permuted`: rows of Q and K change order, because transformers rotates halves of a head and
    llama.cpp's `llama` graph rotates neighbours. `qkv_bias` is the family's fixed rule, None
    when `attention_bias` in the config decides (and then covers the output projection too).
    `head_dim_keys`: the class always has a head_dim, so its length is written to the GGUF.
    `vocab_keys`: vocabulary size and rotary dimensions are written as well.
    """

    name: str
    permuted: bool
    qkv_bias: bool | None
    head_dim_keys: bool
    vocab_keys: bool

    def tensors(self, config: Config) -> list[TensorSpec]:
        """Return the GGUF's tensors in the order llama-quantize visits and writes them."""
        tied = flag(config, "tie_word_embeddings", False)
        return [source.spec for source in self._all(config, output=not tied)]

    def sources(self, config: Config, stored: Iterable[str]) -> list[TensorSource]:
        """Match the checkpoint's names with the model's; see `Architecture.sources`.

        As in llama.cpp, the stored tensors decide whether there is an output matrix of its
        own: `tie_word_embeddings` without `lm_head.weight` and the reverse both convert.
        """
        names = {name for name in stored if not name.endswith(_UNUSED)}
        tied = flag(config, "tie_word_embeddings", False)
        if not tied and "lm_head.weight" not in names:
            raise BadCheckpointError(
                "the checkpoint stores no lm_head.weight and config.json does not tie it to the "
                "embeddings",
                code="missing_tensor",
                hint="fetch the checkpoint again; a shard may be missing",
            )
        wanted = self._all(config, output="lm_head.weight" in names)
        expected = {part.source for source in wanted for part in source.parts}
        if missing := sorted(expected - names):
            raise BadCheckpointError(
                f"the checkpoint lacks {len(missing)} tensors: {listed(missing)}",
                code="missing_tensor",
                hint="fetch the checkpoint again; a shard may be missing",
            )
        if extra := sorted(names - expected):
            raise BadCheckpointError(
                f"the checkpoint has {len(extra)} tensors this architecture does not use: "
                f"{listed(extra)}",
                code="unknown_tensor",
                hint="convert a plain checkpoint: no adapters, vision parts or quantized weights",
            )
        return wanted

    def recipe_params(self, config: Config) -> RecipeParams:
        shape = read_shape(config)
        return RecipeParams(self.name, shape.n_layer, shape.n_head, shape.n_head_kv)

    def metadata(self, config: Config) -> list[KeyValue]:
        """Return the `{arch}.*` keys in the order of llama.cpp's converter."""
        shape = read_shape(config)
        arch = self.name
        keys = [
            u32(f"{arch}.block_count", shape.n_layer),
            u32(f"{arch}.context_length", integer(config, "max_position_embeddings")),
            u32(f"{arch}.embedding_length", shape.hidden),
            u32(f"{arch}.feed_forward_length", shape.ffn),
            u32(f"{arch}.attention.head_count", shape.n_head),
            u32(f"{arch}.attention.head_count_kv", shape.n_head_kv),
            *rope_metadata(arch, config),
            f32(f"{arch}.attention.layer_norm_rms_epsilon", number(config, "rms_norm_eps", 1e-6)),
        ]
        if self.head_dim_keys or config.get("head_dim") is not None:
            keys.append(u32(f"{arch}.attention.key_length", shape.head_dim))
            keys.append(u32(f"{arch}.attention.value_length", shape.head_dim))
        if self.vocab_keys:
            keys.append(u32(f"{arch}.vocab_size", shape.vocab))
            keys.append(u32(f"{arch}.rope.dimension_count", shape.head_dim))
        return keys

    def notes(self, config: Config, stored: Iterable[str]) -> list[str]:  # noqa: ARG002
        """Nothing is left out."""
        return []

    def _all(self, config: Config, *, output: bool) -> list[TensorSource]:
        shape = read_shape(config)
        matrix = (shape.hidden, shape.vocab)
        found = [
            plain("token_embd.weight", matrix, "model.embed_tokens.weight"),
            plain("output_norm.weight", (shape.hidden,), "model.norm.weight"),
        ]
        if output:
            found.append(plain("output.weight", matrix, "lm_head.weight"))
        if self.permuted and (factors := rope_factors(rope_parameters(config), shape.head_dim)):
            spec = TensorSpec("rope_freqs.weight", (len(factors),))
            found.append(TensorSource(spec, values=factors))
        for layer in range(shape.n_layer):
            found.extend(self._layer(config, shape, layer))
        return sorted(found, key=lambda source: quantize_order(source.spec.name))

    def _layer(self, config: Config, shape: Shape, layer: int) -> list[TensorSource]:
        q_rows, kv_rows = shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
        q_view = rope_pairs(shape.n_head, shape.head_dim) if self.permuted else ()
        k_view = rope_pairs(shape.n_head_kv, shape.head_dim) if self.permuted else ()
        every_bias = self.qkv_bias is None and flag(config, "attention_bias", False)
        qkv_bias = every_bias if self.qkv_bias is None else self.qkv_bias
        ffn_bias = self.qkv_bias is None and flag(config, "mlp_bias", False)
        linear: tuple[tuple[str, str, int, int, View, bool], ...] = (
            ("attn_q", "self_attn.q_proj", shape.hidden, q_rows, q_view, qkv_bias),
            ("attn_k", "self_attn.k_proj", shape.hidden, kv_rows, k_view, qkv_bias),
            ("attn_v", "self_attn.v_proj", shape.hidden, kv_rows, (), qkv_bias),
            ("attn_output", "self_attn.o_proj", q_rows, shape.hidden, (), every_bias),
            ("ffn_gate", "mlp.gate_proj", shape.hidden, shape.ffn, (), ffn_bias),
            ("ffn_up", "mlp.up_proj", shape.hidden, shape.ffn, (), ffn_bias),
            ("ffn_down", "mlp.down_proj", shape.ffn, shape.hidden, (), ffn_bias),
        )
        found = []
        for ours, theirs, columns, rows, view, bias in linear:
            base, source = f"blk.{layer}.{ours}", f"model.layers.{layer}.{theirs}"
            found.append(plain(f"{base}.weight", (columns, rows), f"{source}.weight", view))
            if bias:
                found.append(plain(f"{base}.bias", (rows,), f"{source}.bias", view))
        for ours, theirs in (
            ("attn_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
        ):
            source = f"model.layers.{layer}.{theirs}.weight"
            found.append(plain(f"blk.{layer}.{ours}.weight", (shape.hidden,), source))
        return found
