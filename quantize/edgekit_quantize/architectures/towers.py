"""The two kinds of vision tower, Pixtral and SigLIP, each with its projector.

Names are transformers' newest on one side and those of llama.cpp's `clip` loader on the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekit_quantize.architectures.base import (
    Config,
    Part,
    TensorSource,
    TensorSpec,
    bad_config,
    flag,
    integer,
    number,
    plain,
)
from edgekit_quantize.architectures.matching import text_config
from edgekit_quantize.architectures.views import Take, rope_pairs
from edgekit_quantize.metadata import KeyValue, boolean, f32, f32s, string, u32

MAX_LAYERS = 512

EMBEDDINGS = "embed_tokens"
"""What the towers call the language model's embedding, whose stored name differs by layout."""

BREAK = "v.token_embd.img_break"


@dataclass(frozen=True, slots=True)
class Images:
    """How pictures reach the tower: colour normalisation and the text model's row-end token."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    tokens_per_image: int = 256
    break_token: int | None = None


@dataclass(frozen=True, slots=True)
class Size:
    """The numbers of a tower, checked."""

    n_layer: int
    hidden: int
    n_head: int
    ffn: int
    image: int
    patch: int


@dataclass(frozen=True, slots=True)
class Tower:
    """A vision part: where its tensors come from, its keys, and which tensors stay wide.

    `wide` are F32 whatever the file's type; `half` are F16 whatever it is; `careful` are F16 in a
    file of F16 and F32 in any other.
    """

    sources: tuple[TensorSource, ...]
    keys: tuple[KeyValue, ...]
    wide: tuple[str, ...] = ()
    half: tuple[str, ...] = ()
    careful: tuple[str, ...] = ()


def _size(vision: Config) -> Size:
    size = Size(
        n_layer=integer(vision, "num_hidden_layers"),
        hidden=integer(vision, "hidden_size"),
        n_head=integer(vision, "num_attention_heads"),
        ffn=integer(vision, "intermediate_size"),
        image=integer(vision, "image_size"),
        patch=integer(vision, "patch_size"),
    )
    head_dim = integer(vision, "head_dim", default=max(1, size.hidden // size.n_head))
    if size.n_layer > MAX_LAYERS or size.image < size.patch:
        raise bad_config(f"config.json: a vision part of {size.n_layer} layers, {size.image} px")
    if head_dim * size.n_head != size.hidden or head_dim % 4:
        raise bad_config(f"config.json: vision heads of {head_dim} for a width of {size.hidden}")
    if integer(vision, "num_channels", default=3) != 3:
        raise bad_config("config.json: pictures have three channels")
    return size


def _vision(config: Config) -> Config:
    vision = config.get("vision_config")
    assert isinstance(vision, Mapping), "kind() was asked before"
    return vision


def _keys(size: Size, config: Config, images: Images) -> list[KeyValue]:
    width = integer(text_config(config), "hidden_size")
    return [
        boolean("clip.has_vision_encoder", True),
        u32("clip.vision.projection_dim", width),
        u32("clip.vision.image_size", size.image),
        u32("clip.vision.patch_size", size.patch),
        u32("clip.vision.embedding_length", size.hidden),
        u32("clip.vision.feed_forward_length", size.ffn),
        u32("clip.vision.block_count", size.n_layer),
        u32("clip.vision.attention.head_count", size.n_head),
        f32s("clip.vision.image_mean", images.mean),
        f32s("clip.vision.image_std", images.std),
    ]


def pixtral(config: Config, images: Images) -> Tower:
    """Return Mistral's tower; raises BadCheckpointError (code `bad_config`)."""
    vision = _vision(config)
    size = _size(vision)
    width = integer(text_config(config), "hidden_size")
    merge = integer(config, "spatial_merge_size", default=2)
    if config.get("vision_feature_layer", -1) != -1:
        raise bad_config("config.json: vision_feature_layer is not the last layer")
    if config.get("projector_hidden_act", "gelu") != "gelu":
        raise bad_config("config.json: projector_hidden_act is not 'gelu'")
    rope = vision.get("rope_parameters")
    theta = number(rope if isinstance(rope, Mapping) else vision, "rope_theta", 1e4)
    activation = vision.get("hidden_act", "gelu")
    if theta != 1e4 or activation not in ("gelu", "silu"):
        raise bad_config("config.json: llama.cpp's pixtral takes rope_theta 10000, gelu or silu")
    if images.break_token is None:
        raise bad_config("the tokenizer has no [IMG_BREAK] token")
    found = [
        _part("mm.input_norm", "multi_modal_projector.norm", size.hidden),
        _part(
            "mm.patch_merger",
            "multi_modal_projector.patch_merger.merging_layer",
            size.hidden * merge * merge,
            size.hidden,
        ),
        *_linears(config, size.hidden, width),
        TensorSource(
            TensorSpec(BREAK, (width,)),
            (Part(EMBEDDINGS, (Take(0, images.break_token, images.break_token + 1),)),),
        ),
        _part("v.pre_ln", "vision_tower.ln_pre", size.hidden),
        _part("v.patch_embd", "vision_tower.patch_conv", size.patch, size.patch, 3, size.hidden),
    ]
    turned = rope_pairs(size.n_head, size.hidden // size.n_head)
    for layer in range(size.n_layer):
        ours, theirs = f"v.blk.{layer}", f"vision_tower.transformer.layers.{layer}"
        for letter, view in (("q", turned), ("k", turned), ("v", ())):
            shape = (size.hidden, size.hidden)
            name = f"{theirs}.attention.{letter}_proj.weight"
            found.append(plain(f"{ours}.attn_{letter}.weight", shape, name, view))
        found += [
            _part(f"{ours}.attn_out", f"{theirs}.attention.o_proj", size.hidden, size.hidden),
            _part(f"{ours}.ln1", f"{theirs}.attention_norm", size.hidden),
            _part(f"{ours}.ffn_gate", f"{theirs}.feed_forward.gate_proj", size.hidden, size.ffn),
            _part(f"{ours}.ffn_up", f"{theirs}.feed_forward.up_proj", size.hidden, size.ffn),
            _part(f"{ours}.ffn_down", f"{theirs}.feed_forward.down_proj", size.ffn, size.hidden),
            _part(f"{ours}.ln2", f"{theirs}.ffn_norm", size.hidden),
        ]
    keys = [
        *_keys(size, config, images),
        string("clip.projector_type", "pixtral"),
        # The class has it in its code, not in its config.
        f32("clip.vision.attention.layer_norm_epsilon", number(vision, "layer_norm_eps", 1e-5)),
        boolean(f"clip.use_{activation}", True),
        u32("clip.vision.spatial_merge_size", merge),
    ]
    careful = ("v.patch_embd.weight", "mm.patch_merger.weight")
    return Tower(tuple(found), tuple(keys), careful=careful)


def _linears(config: Config, columns: int, width: int) -> list[TensorSource]:
    biased = flag(config, "multimodal_projector_bias", False)
    found = []
    for number_, length in ((1, columns), (2, width)):
        ours, theirs = f"mm.{number_}", f"multi_modal_projector.linear_{number_}"
        found.append(_part(ours, theirs, length, width))
        if biased:
            found.append(plain(f"{ours}.bias", (width,), f"{theirs}.bias"))
    return found


def siglip(config: Config, images: Images) -> Tower:
    """Return Gemma 3's tower; raises BadCheckpointError (code `bad_config`)."""
    vision = _vision(config)
    size = _size(vision)
    width = integer(text_config(config), "hidden_size")
    if vision.get("hidden_act", "gelu_pytorch_tanh") != "gelu_pytorch_tanh":
        raise bad_config("config.json: the vision part's hidden_act is not 'gelu_pytorch_tanh'")
    side = size.image // size.patch
    per_side = int(images.tokens_per_image**0.5)
    if per_side * per_side != images.tokens_per_image or side % per_side:
        raise bad_config(f"config.json: {images.tokens_per_image} tokens for {side}x{side} patches")
    patch_bias = "vision_tower.embeddings.patch_embedding.bias"
    soft_norm = Part("multi_modal_projector.mm_soft_emb_norm.weight")
    projection = "multi_modal_projector.mm_input_projection_weight"
    found = [
        plain("mm.input_projection.weight", (width, size.hidden), projection),
        TensorSource(TensorSpec("mm.soft_emb_norm.weight", (size.hidden,)), (soft_norm,), add=1.0),
        plain("v.patch_embd.bias", (size.hidden,), patch_bias),
        _part(
            "v.patch_embd",
            "vision_tower.embeddings.patch_embedding",
            size.patch,
            size.patch,
            3,
            size.hidden,
        ),
        _part(
            "v.position_embd",
            "vision_tower.embeddings.position_embedding",
            size.hidden,
            side * side,
        ),
        *_biased("v.post_ln", "vision_tower.post_layernorm", size.hidden),
    ]
    for layer in range(size.n_layer):
        ours, theirs = f"v.blk.{layer}", f"vision_tower.encoder.layers.{layer}"
        square = (size.hidden, size.hidden)
        for name, other, shape in (
            ("attn_q", "self_attn.q_proj", square),
            ("attn_k", "self_attn.k_proj", square),
            ("attn_v", "self_attn.v_proj", square),
            ("attn_out", "self_attn.out_proj", square),
            ("ln1", "layer_norm1", (size.hidden,)),
            ("ffn_up", "mlp.fc1", (size.hidden, size.ffn)),
            ("ffn_down", "mlp.fc2", (size.ffn, size.hidden)),
            ("ln2", "layer_norm2", (size.hidden,)),
        ):
            found += _biased(f"{ours}.{name}", f"{theirs}.{other}", *shape)
    keys = [
        *_keys(size, config, images),
        string("clip.projector_type", "gemma3"),
        f32("clip.vision.attention.layer_norm_epsilon", number(vision, "layer_norm_eps", 1e-6)),
        boolean("clip.use_gelu", True),
    ]
    if side // per_side != 4:
        keys.append(u32("clip.vision.projector.scale_factor", side // per_side))
    return Tower(
        tuple(found),
        tuple(keys),
        wide=("v.patch_embd.weight", "v.position_embd.weight"),
        half=("mm.input_projection.weight",),
    )


def _part(ours: str, theirs: str, *shape: int) -> TensorSource:
    return plain(f"{ours}.weight", shape, f"{theirs}.weight")


def _biased(ours: str, theirs: str, *shape: int) -> Sequence[TensorSource]:
    return (
        _part(ours, theirs, *shape),
        plain(f"{ours}.bias", shape[-1:], f"{theirs}.bias"),
    )
