"""Decoder-only transformers with gated feed-forward layers: what Llama, Mistral and Qwen share.

Names and shapes follow the `*ForCausalLM` classes of transformers; the GGUF side follows
llama.cpp's conversion of the same models.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgekit_quantize.architectures.base import (
    Config,
    Part,
    RecipeParams,
    TensorSource,
    TensorSpec,
    bad_config,
    flag,
    integer,
    number,
    plain,
    quantize_order,
)
from edgekit_quantize.architectures.matching import (
    has_output,
    language_part,
    match,
    text_config,
    vision_note,
)
from edgekit_quantize.architectures.rope import (
    rope_factors,
    rope_metadata,
    rope_parameters,
    yarn_attention,
)
from edgekit_quantize.architectures.views import View, rope_pairs
from edgekit_quantize.metadata import KeyValue, f32, u32

MAX_LAYERS = 512
"""llama.cpp's LLAMA_MAX_LAYERS; also keeps a hostile config from asking for a huge list."""

MAX_HEAD_DIM = 1 << 16
"""A hundred times the largest in use: keeps a hostile config from asking for endless factors."""


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


def read_shape(config: Config, activation: str = "silu") -> Shape:
    """Read and check the shape. Raises BadCheckpointError (code `bad_config`).

    `activation` is the only one that llama.cpp's graph of the model has.
    """
    if config.get("hidden_act", activation) not in (activation, None):
        raise bad_config(
            f"config.json: hidden_act {config['hidden_act']!r:.60} is not {activation!r}"
        )
    hidden = integer(config, "hidden_size")
    n_head = integer(config, "num_attention_heads")
    n_head_kv = integer(config, "num_key_value_heads", default=n_head)
    if n_head % n_head_kv:
        raise bad_config(f"config.json: {n_head} heads cannot share {n_head_kv} key-value heads")
    if config.get("head_dim") is None and hidden % n_head:
        raise bad_config(f"config.json: hidden_size {hidden} is no multiple of {n_head} heads")
    head_dim = integer(config, "head_dim", default=hidden // n_head)
    if head_dim % 2 or head_dim > MAX_HEAD_DIM:
        raise bad_config(
            f"config.json: head_dim {head_dim}: rotary positions need pairs, and at most "
            f"{MAX_HEAD_DIM} values"
        )
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


LLAMA_NORMS = (("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm"))
"""A layer's norms: name in the GGUF, name in the checkpoint."""


@dataclass(frozen=True, slots=True)
class DenseArchitecture:
    """One family of this shape.

    `permuted`: rows of Q and K change order, because transformers rotates halves of a head and
    llama.cpp's `llama` graph rotates neighbours. `qkv_bias` is the family's fixed rule, None
    when `attention_bias` in the config decides (and then covers the output projection too).
    `head_dim_keys`: the class always has a head_dim, so its length is written to the GGUF.
    `vocab_keys`: vocabulary size and rotary dimensions are written as well. `qk_norm`: Q and K
    are normalised per head. `wrapped`: a vision part may stand around it. `yarn_log`: llama.cpp's
    graph knows YaRN's log multiplier, its betas and the attention temperature. `norm_add`:
    transformers adds it to each norm weight when it runs, llama.cpp does not. `activation`: the
    one that llama.cpp's graph has.
    """

    name: str
    permuted: bool
    qkv_bias: bool | None
    head_dim_keys: bool
    vocab_keys: bool
    qk_norm: bool = False
    wrapped: bool = False
    yarn_log: bool = False
    norms: tuple[tuple[str, str], ...] = LLAMA_NORMS
    norm_add: float = 0.0
    activation: str = "silu"

    def tensors(self, config: Config) -> list[TensorSpec]:
        """Return the GGUF's tensors in the order llama-quantize visits and writes them."""
        config = self._text(config)
        tied = flag(config, "tie_word_embeddings", False)
        return [source.spec for source in self._all(config, output=not tied)]

    def sources(self, config: Config, stored: Iterable[str]) -> list[TensorSource]:
        """Match the checkpoint's names with the model's; see `Architecture.sources`.

        As in llama.cpp, the stored tensors decide whether there is an output matrix of its
        own: `tie_word_embeddings` without `lm_head.weight` and the reverse both convert.
        """
        names = language_part(stored, wrapped=self.wrapped).of
        output = has_output(config, names)
        return match(self._all(self._text(config), output=output), names)

    def recipe_params(self, config: Config) -> RecipeParams:
        shape = read_shape(self._text(config), self.activation)
        return RecipeParams(self.name, shape.n_layer, shape.n_head, shape.n_head_kv)

    def metadata(self, config: Config) -> list[KeyValue]:
        """Return the `{arch}.*` keys in the order of llama.cpp's converter."""
        config = self._text(config)
        shape = read_shape(config, self.activation)
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
        keys.extend(yarn_attention(arch, config, reads_log=self.yarn_log))
        return keys

    def notes(self, config: Config, stored: Iterable[str]) -> list[str]:
        """Say what of the model llama.cpp leaves out: a vision part, a sliding window."""
        left_out = language_part(stored, wrapped=self.wrapped).left_out
        return [*vision_note(left_out), *window_note(self._text(config))]

    def unmatched(self, config: Config, *, output: bool) -> list[TensorSource]:
        """Return every tensor under the class's own names, for families that change some."""
        return self._all(self._text(config), output=output)

    def _text(self, config: Config) -> Config:
        return text_config(config) if self.wrapped else config

    def _all(self, config: Config, *, output: bool) -> list[TensorSource]:
        shape = read_shape(config, self.activation)
        matrix = (shape.hidden, shape.vocab)
        found = [
            plain("token_embd.weight", matrix, "model.embed_tokens.weight"),
            self._norm("output_norm.weight", "model.norm.weight", shape.hidden),
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
        if every_bias and self.qk_norm:
            raise bad_config(f"config.json: attention_bias, which llama.cpp's {self.name} lacks")
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
        norms = [(*norm, shape.hidden) for norm in self.norms]
        if self.qk_norm:
            norms.append(("attn_q_norm", "self_attn.q_norm", shape.head_dim))
            norms.append(("attn_k_norm", "self_attn.k_norm", shape.head_dim))
        for ours, theirs, length in norms:
            name, source = f"blk.{layer}.{ours}.weight", f"model.layers.{layer}.{theirs}.weight"
            found.append(self._norm(name, source, length))
        return found

    def _norm(self, name: str, source: str, length: int) -> TensorSource:
        return TensorSource(TensorSpec(name, (length,)), (Part(source),), add=self.norm_add)


def window_note(config: Config) -> list[str]:
    """Say so when the model looks at a window only, which llama.cpp's graph does not."""
    window = config.get("sliding_window")
    if window is None or config.get("use_sliding_window") is False:
        return []
    window = integer(config, "sliding_window")
    if window >= integer(config, "max_position_embeddings", default=window):
        return []
    return [
        f"the model was trained to look at the last {window} tokens only; llama.cpp looks at all "
        f"of them, so answers differ from the original beyond {window} tokens"
    ]
