"""DeepSeek's numbers: latent attention (MLA), experts and how they are chosen."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit_quantize.architectures.base import Config, bad_config, flag, integer, number
from edgekit_quantize.architectures.dense import Shape, read_shape
from edgekit_quantize.architectures.experts import Experts, read_experts

SOFTMAX, SIGMOID = 1, 2
"""llama.cpp's numbers for how a router's scores become weights."""

V3 = "DeepseekV3ForCausalLM"


@dataclass(frozen=True, slots=True)
class Latent:
    """Ranks and head sizes. `q_rank` is 0 where queries are not compressed (V2-Lite).

    A head's query and key are `nope` values without positions, then `rope` rotated ones.
    """

    q_rank: int
    kv_rank: int
    nope: int
    rope: int
    value: int


@dataclass(frozen=True, slots=True)
class Routing:
    """How experts are chosen: scores, groups of which only the best take part, weights.

    `groups` is 0 where grouping changes nothing. `best_only`: the model ranks a group by its best
    expert, not by its best two. `biased`: a stored bias takes part in choosing.
    """

    gating: int
    biased: bool
    best_only: bool
    groups: int
    groups_used: int
    scale: float
    normalised: bool


@dataclass(frozen=True, slots=True)
class DeepSeek:
    """One model's numbers, checked."""

    shape: Shape
    latent: Latent
    experts: Experts
    shared: int
    dense_layers: int
    routing: Routing


def read_deepseek(config: Config) -> DeepSeek:
    """Read and check the numbers. Raises BadCheckpointError (code `bad_config`).

    What a config leaves out has the value of its class in transformers.
    """
    is_v3 = is_deepseek_v3(config)
    shape = read_shape(config)
    compressed = config.get("q_lora_rank", 1536) is not None
    q_rank = integer(config, "q_lora_rank", default=1536) if compressed else 0
    latent = Latent(
        q_rank=q_rank,
        kv_rank=integer(config, "kv_lora_rank", default=512),
        nope=integer(config, "qk_nope_head_dim", default=128),
        rope=integer(config, "qk_rope_head_dim", default=64, least=2),
        value=integer(config, "v_head_dim", default=128),
    )
    if latent.rope % 2:
        raise bad_config(f"config.json: qk_rope_head_dim {latent.rope} is odd")
    if not flag(config, "rope_interleave", True):
        raise bad_config("config.json: rope_interleave is off, llama.cpp's deepseek2 needs it")
    if flag(config, "attention_bias", False) or flag(config, "mlp_bias", False):
        raise bad_config("config.json: llama.cpp's deepseek2 has no biases")
    experts = read_experts(config, "moe_intermediate_size", "n_routed_experts")
    dense = integer(config, "first_k_dense_replace", default=3 if is_v3 else 0, least=0)
    if dense > shape.n_layer or integer(config, "moe_layer_freq", default=1) != 1:
        raise bad_config("config.json: dense layers may only come first, and not outnumber all")
    shared = integer(config, "n_shared_experts", default=1 if is_v3 else 2)
    return DeepSeek(shape, latent, experts, shared, dense, _routing(config, experts, is_v3=is_v3))


def is_deepseek_v3(config: Config) -> bool:
    named = config.get("architectures")
    if isinstance(named, list) and named:
        return bool(named[0] == V3)
    return config.get("model_type") == "deepseek_v3"


def _routing(config: Config, experts: Experts, *, is_v3: bool) -> Routing:
    scoring = config.get("scoring_func")
    if scoring not in (None, "softmax", "sigmoid"):
        raise bad_config(f"config.json: scoring_func {scoring!r} is not softmax or sigmoid")
    default = SIGMOID if is_v3 else SOFTMAX
    gating = {None: default, "softmax": SOFTMAX, "sigmoid": SIGMOID}[scoring]
    groups = integer(config, "n_group", default=8 if is_v3 else 1)
    used = integer(config, "topk_group", default=min(4, groups) if is_v3 else groups)
    if used > groups or experts.count % groups or (groups > 1 and experts.count // groups < 2):
        raise bad_config(
            f"config.json: {experts.count} experts in {groups} groups of which {used} take part"
        )
    if experts.used > experts.count // groups * used:
        raise bad_config("config.json: the groups that take part hold too few experts")
    best_only = config.get("topk_method") == "group_limited_greedy"
    if groups > 1 and (used == groups or not (is_v3 or best_only)):
        groups = used = 0
    return Routing(
        gating=gating,
        biased=is_v3 and config.get("topk_method") in (None, "noaux_tc"),
        best_only=best_only and groups > 1,
        groups=groups,
        groups_used=used,
        scale=number(config, "routed_scaling_factor", 2.5 if is_v3 else 1.0),
        normalised=flag(config, "norm_topk_prob", is_v3),
    )
