"""Sizes from config.json: nested configs, mixtures, windows, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from edgekit.catalogue import find_model
from edgekit.errors import BadDataError
from edgekit.shape import shape

DENSE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


def test_a_multimodal_config_is_read_by_its_text_model() -> None:
    config = {"model_type": "mistral3", "vision_config": {"hidden_size": 8}, "text_config": DENSE}
    assert shape(config) == shape(DENSE)


@pytest.mark.parametrize(
    ("more", "windows"),
    [
        ({"sliding_window": 4096, "model_type": "mistral"}, ()),
        ({"sliding_window": 16, "model_type": "gpt_oss"}, (16, 0, 16, 0)),
        ({"sliding_window": 16, "model_type": "gemma3_text"}, (16, 16, 16, 16)),
        ({"model_type": "gemma3_text", "sliding_window": 16, "sliding_window_pattern": 2},
         (16, 0, 16, 0)),
        ({"model_type": "llama4_text", "intermediate_size_mlp": 8, "num_local_experts": 0},
         (8192, 8192, 8192, 0)),
        ({"sliding_window": 16, "layer_types": ["full_attention"] * 4, "model_type": "gpt_oss"},
         ()),
        ({"sliding_window": 16, "layer_types": ["full_attention"] + ["sliding_attention"] * 3},
         (0, 16, 16, 16)),
    ],
)  # fmt: skip
def test_windows_are_where_llama_cpp_has_them(
    more: dict[str, Any], windows: tuple[int, ...]
) -> None:
    assert shape({**DENSE, **more}).windows == windows


@pytest.mark.parametrize(
    ("model", "mixed", "dense", "wide"),
    [
        ("llama-4-scout", 48, 0, 16384),
        ("llama-4-maverick", 24, 24, 16384),
        ("qwen3-coder-30b-a3b", 48, 0, 8 * 768),
        ("deepseek-coder-v2-lite", 26, 1, 8 * 1408),
        ("deepseek-v3", 58, 3, 18432),
        ("gpt-oss-20b", 24, 0, 4 * 2880),
    ],
)
def test_a_mixture_says_which_layers_and_how_wide(
    model: str, mixed: int, dense: int, wide: int
) -> None:
    s = shape(find_model(model).config)
    assert s.experts is not None
    assert (sum(s.experts.layers), s.n_layer - sum(s.experts.layers)) == (mixed, dense)
    assert s.n_ff == wide


def test_null_and_absent_query_ranks_differ() -> None:
    latent = {
        **DENSE, "model_type": "deepseek_v2", "kv_lora_rank": 8, "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4, "v_head_dim": 8,
    }  # fmt: skip
    ranks = []
    for more in ({}, {"q_lora_rank": None}, {"q_lora_rank": 32}):
        mla = shape({**latent, **more}).mla
        assert mla is not None
        ranks.append(mla.q_rank)
    assert ranks == [1536, None, 32]


@pytest.mark.parametrize(
    "more",
    [
        {"num_hidden_layers": 10**9},
        {"num_attention_heads": "4"},
        {"num_local_experts": -1},
        {"layer_types": ["full_attention"]},
        {"model_type": "gpt_oss", "sliding_window": 0},
        {"kv_lora_rank": 8},
        {"num_experts": 4, "moe_intermediate_size": 2**40},
    ],
)
def test_a_config_without_sense_is_bad_data(more: dict[str, Any]) -> None:
    with pytest.raises(BadDataError):
        shape({**DENSE, **more})
