"""The sizes of a decoder, read from its Hugging Face config.

Dense models, mixtures of experts, latent attention (MLA), sliding windows, chunked and linear
attention. A multimodal config keeps its text model in `text_config`; only that is read. Field
names are those of transformers' config classes; where llama.cpp hard-codes a pattern (the local
layers of Gemma 3, gpt-oss, Llama 4), a config that is silent gets the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from edgekit.errors import BadDataError

Config = Mapping[str, object]

MAX_LAYERS: Final = 512
"""llama.cpp's LLAMA_MAX_LAYERS; keeps a hostile config from asking for a huge table."""

LLAMA4_CHUNK: Final = 8192
"""llama.cpp's chunk of Llama 4's local layers, whatever the config says (src/models/llama4.cpp)."""

_PERIODS: Final[dict[str, int]] = {
    "cohere2": 4,
    "exaone4": 4,
    "gemma2": 2,
    "gemma3": 6,
    "gemma3_text": 6,
    "gemma4_text": 6,
    "gpt_oss": 2,
    "llama4": 4,
    "llama4_text": 4,
    "muse_glimmer": 4,
    "muse_glimmer_text": 4,
}
"""Model types with local layers: the last of so many layers sees everything, the others do not.
Others may name a sliding window in their config (Mistral 7B, Phi): llama.cpp has none for them."""

_QUERY_RANKS: Final = {"mistral4": 1024, "glm4_moe_lite": 768}
"""transformers' default of `q_lora_rank` where it is not DeepSeek's 1536."""

_FUSED: Final = ("phi3",)
_GATED: Final = ("muse_glimmer", "muse_glimmer_text")
_LOCAL: Final = ("sliding_attention", "chunked_attention")
_RECURRENT: Final = ("linear_attention", "conv", "mamba")


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture: `used` of `count` experts per token, `n_ff` wide each, beside shared ones.

    `n_ff_shared` is the width of all shared experts together, 0 without any. `layers` says for
    each layer whether it is a mixture; the others are dense and `n_ff_dense` wide.
    """

    count: int
    used: int
    n_ff: int
    n_ff_shared: int
    n_ff_dense: int
    layers: tuple[bool, ...]
    weighted_first: bool = False
    """Llama 4 weighs what goes into the experts, the others what comes out."""


@dataclass(frozen=True, slots=True)
class Mla:
    """Latent attention: one compressed row of `kv_rank + rope` values for all heads."""

    q_rank: int | None
    kv_rank: int
    nope: int
    rope: int
    value: int


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a decoder.

    `n_ff` is the feed-forward width that one token passes: for a mixture, of the experts used
    and the shared ones together. `windows` holds per layer how many tokens back it sees, 0 is
    all of them; () is all in every layer. `state` holds per layer the values that a recurrent
    layer keeps for each sequence (such a layer has no keys and values); () is none.
    """

    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    n_vocab: int
    windows: tuple[int, ...] = ()
    state: tuple[int, ...] = ()
    experts: Experts | None = None
    mla: Mla | None = None
    global_row: int | None = None
    """Key values of a cell in the layers that see everything, where they differ (Gemma 4)."""
    cached: tuple[bool, ...] = ()
    """Which layers keep keys and values of their own; () is all that are not recurrent. Some
    reuse those of others (Gemma 4), some have no attention at all (Nemotron)."""
    fused: bool = False
    """Q, K and V come out of one matrix, gate and up out of another (Phi 3 and 4)."""
    gated: bool = False
    """What attention finds is multiplied by a gate as wide (Muse)."""

    def __post_init__(self) -> None:
        for each in (self.windows, self.state, self.cached):
            if len(each) not in (0, self.n_layer):
                raise ValueError("windows, state and cached are per layer")


def text_config(config: Config) -> Config:
    """The text model's part of a config; what it does not say is taken from the outer one."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, Mapping) else config


def shape(config: Config) -> Shape:
    """Sizes of a decoder.

    Raises:
        BadDataError: a size is missing, no positive whole number, or there are too many layers.
    """
    text = text_config(config)
    n_head = _size(text, "num_attention_heads")
    n_embd = _size(text, "hidden_size")
    n_layer = _size(text, "num_hidden_layers")
    if n_layer > MAX_LAYERS:
        raise _bad(f"{n_layer} layers, llama.cpp takes at most {MAX_LAYERS}")
    experts = _experts(text, n_layer)
    mla = _mla(text)
    wide = experts.used * experts.n_ff + experts.n_ff_shared if experts else None
    head_dim = _size(text, "head_dim", max(1, n_embd // n_head))
    global_row = None
    if text.get("global_head_dim") is not None:
        heads = _size(text, "num_global_key_value_heads", _size(text, "num_key_value_heads"))
        global_row = heads * _size(text, "global_head_dim")
    return Shape(
        n_layer=n_layer,
        n_embd=n_embd,
        n_head=n_head,
        n_head_kv=_size(text, "num_key_value_heads", n_head),
        head_dim=mla.nope + mla.rope if mla else head_dim,
        n_ff=wide or _size(text, "intermediate_size"),
        n_vocab=_size(text, "vocab_size"),
        windows=_windows(text, n_layer),
        state=_state(text, n_layer, n_embd),
        experts=experts,
        mla=mla,
        global_row=global_row,
        cached=_cached(text, n_layer),
        fused=text.get("model_type") in _FUSED,
        gated=text.get("model_type") in _GATED,
    )


def _layer_types(text: Config, n_layer: int) -> list[object] | None:
    """What each layer attends with, where the config says so in one of its spellings."""
    types = text.get("layer_types")
    if isinstance(types, list):
        if len(types) != n_layer:
            raise _bad(f"layer_types names {len(types)} layers of {n_layer}")
        return types
    if text.get("full_attention_interval") is not None:
        every = _size(text, "full_attention_interval")
        full = {i for i in range(n_layer) if (i + 1) % every == 0}
        return ["full_attention" if i in full else "linear_attention" for i in range(n_layer)]
    places = text.get("full_attn_idxs")
    if isinstance(places, list):
        return ["full_attention" if i in places else "conv" for i in range(n_layer)]
    return None


def _windows(text: Config, n_layer: int) -> tuple[int, ...]:
    kind = text.get("model_type")
    types = _layer_types(text, n_layer)
    period = _PERIODS.get(kind) if isinstance(kind, str) else None
    if types is not None:
        local = [t in _LOCAL for t in types]
    elif period is not None:
        given = text.get("sliding_window_pattern")
        every = given if isinstance(given, int) and given > 0 else period
        local = [i % every < every - 1 for i in range(n_layer)]
    else:
        return ()
    if not any(local):
        return ()
    if kind in ("llama4", "llama4_text"):
        window = LLAMA4_CHUNK
    else:
        window = _size(text, "sliding_window", 4096 if kind == "gemma2" else None)
    return tuple(window if there else 0 for there in local)


def _state(text: Config, n_layer: int, n_embd: int) -> tuple[int, ...]:
    """Values that recurrent layers keep per sequence; llama.cpp's n_embd_r + n_embd_s, in F32."""
    if (mixers := mixer_pattern(text, n_layer)) is not None:
        inner = _size(text, "mamba_num_heads") * _size(text, "mamba_head_dim")
        deep = _size(text, "ssm_state_size")
        conv = (_size(text, "conv_kernel") - 1) * (inner + 2 * _size(text, "n_groups") * deep)
        return tuple(conv + deep * inner if mixer == "M" else 0 for mixer in mixers)
    types = _layer_types(text, n_layer)
    if types is None or not any(t in _RECURRENT for t in types):
        return ()
    if text.get("conv_L_cache") is not None:
        values = n_embd * (_size(text, "conv_L_cache") - 1)
    else:
        keys = _size(text, "linear_num_key_heads") * _size(text, "linear_key_head_dim")
        values_wide = _size(text, "linear_num_value_heads") * _size(text, "linear_value_head_dim")
        conv = (_size(text, "linear_conv_kernel_dim") - 1) * (values_wide + 2 * keys)
        values = conv + _size(text, "linear_key_head_dim") * values_wide
    return tuple(values if t in _RECURRENT else 0 for t in types)


def _cached(text: Config, n_layer: int) -> tuple[bool, ...]:
    if (mixers := mixer_pattern(text, n_layer)) is not None:
        return tuple(mixer == "*" for mixer in mixers)
    shared = _size(text, "num_kv_shared_layers", 0, least=0)
    return tuple(i < n_layer - shared for i in range(n_layer)) if 0 < shared < n_layer else ()


def mixer_pattern(text: Config, n_layer: int) -> str | None:
    """One letter a layer where each is only one thing (Nemotron): M recurrent, E experts,
    * attention, - feed-forward."""
    given = text.get("hybrid_override_pattern")
    if given is None:
        return None
    if not isinstance(given, str) or len(given) != n_layer or set(given) - set("ME*-"):
        raise _bad(f"hybrid_override_pattern is {given!r}, not {n_layer} letters of M, E, * and -")
    return given


def _mla(text: Config) -> Mla | None:
    if text.get("kv_lora_rank") is None:
        return None
    # Absent is the class's default; null is a query matrix that is not compressed.
    kind = text.get("model_type")
    default = _QUERY_RANKS.get(kind, 1536) if isinstance(kind, str) else 1536
    q_rank = _size(text, "q_lora_rank", default) if text.get("q_lora_rank", 0) is not None else 0
    return Mla(
        q_rank=q_rank or None,
        kv_rank=_size(text, "kv_lora_rank"),
        nope=_size(text, "qk_nope_head_dim"),
        rope=_size(text, "qk_rope_head_dim"),
        value=_size(text, "v_head_dim"),
    )


def _experts(text: Config, n_layer: int) -> Experts | None:
    names = ("num_local_experts", "n_routed_experts", "num_experts")
    key = next((name for name in names if text.get(name) is not None), None)
    if key is None or _size(text, key, least=0) == 0:
        return None
    dense = _size(text, "intermediate_size", 0, least=0)
    wide = _size(text, "moe_intermediate_size", dense or None)
    is_llama4 = text.get("model_type") in ("llama4", "llama4_text")
    if is_llama4:
        # One shared expert as wide as the others; dense layers have a width of their own.
        shared, dense = wide, _size(text, "intermediate_size_mlp")
    elif text.get("moe_shared_expert_intermediate_size") is not None:
        shared = _size(text, "moe_shared_expert_intermediate_size")
    elif text.get("n_shared_experts") is not None:
        shared = _size(text, "n_shared_experts", least=0) * wide
    elif text.get("enable_moe_block"):
        # Gemma 4: each layer's dense part stands beside its experts.
        shared = dense
    else:
        shared = _size(text, "shared_expert_intermediate_size", 0, least=0)
    first = _size(text, "first_k_dense_replace", 0, least=0)
    step = _size(text, "interleave_moe_layer_step" if is_llama4 else "decoder_sparse_step", 1)
    dense_only = text.get("mlp_only_layers")
    listed = text.get("moe_layers")
    kinds = text.get("mlp_layer_types")
    if (mixers := mixer_pattern(text, n_layer)) is not None:
        layers = tuple(mixer == "E" for mixer in mixers)
    elif isinstance(listed, list):
        layers = tuple(i in listed for i in range(n_layer))
    elif isinstance(kinds, list) and len(kinds) == n_layer:
        layers = tuple(kind == "sparse" for kind in kinds)
    else:
        kept = dense_only if isinstance(dense_only, list) else []
        layers = tuple(i >= first and (i + 1) % step == 0 and i not in kept for i in range(n_layer))
    used = _size(text, "num_experts_per_tok", _size(text, "top_k_experts", 0, least=0) or None)
    return Experts(_size(text, key), used, wide, shared, dense, layers, is_llama4)


def _size(config: Config, key: str, default: int | None = None, *, least: int = 1) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
        wanted = "a positive whole number" if least else "a whole number, zero or more"
        raise _bad(f"{key} is {value!r}, not {wanted}")
    return value


def _bad(problem: str) -> BadDataError:
    return BadDataError(
        f"config: {problem}", code="bad_config_json", hint="check the model's config.json"
    )
