"""Configs of tiny dense models, one for each architecture and its odd features.

Heads are wider than hidden_size / heads where the class allows it, queries are grouped, windows
and original contexts are shorter than the 96 tokens that tests look at.
"""

from __future__ import annotations

from typing import Any

from tests.support.tiny_models import VOCAB

Config = dict[str, Any]

_SHAPE: Config = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 96,
    "vocab_size": VOCAB,
}
_NARROW = {key: value for key, value in _SHAPE.items() if key != "head_dim"}

_YARN: Config = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}

PIXTRAL: Config = {
    "model_type": "pixtral",
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "head_dim": 16,
    "intermediate_size": 64,
    "image_size": 256,
    "patch_size": 16,
}
SIGLIP: Config = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 56,
    "patch_size": 14,
}

_PHI: Config = {
    **_NARROW,
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LONGROPE: Config = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0],
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
}

_GEMMA: Config = {
    **_SHAPE,
    "num_hidden_layers": 7,
    "sliding_window": 16,
    "query_pre_attn_scalar": 32,
}
_GEMMA_TEXT = {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"}

DENSE: dict[str, Config] = {
    "llama: biases, llama3 rope": {
        **_SHAPE,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "llama: linear rope, tied": {
        **_SHAPE,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    },
    "mistral: yarn with a factor of its own": {
        **_SHAPE,
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": None,
        "rope_parameters": {**_YARN, "attention_factor": 1.3},
    },
    "qwen2: yarn, tied": {
        **_NARROW,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "tie_word_embeddings": True,
        "rope_parameters": _YARN,
    },
    "qwen3": {**_SHAPE, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"},
    "mistral3: plain text part, vision": {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "model_type": "mistral3",
        "tie_word_embeddings": False,
        "text_config": {**_SHAPE, "model_type": "mistral", "sliding_window": None},
        "vision_config": PIXTRAL,
    },
    "mistral3: ministral, tied, vision": {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "model_type": "mistral3",
        "tie_word_embeddings": True,
        "text_config": {
            **_SHAPE,
            "model_type": "ministral3",
            "rope_parameters": {
                **_YARN,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            },
        },
        "vision_config": PIXTRAL,
    },
    "mistral3: text only, odd yarn": {
        **_SHAPE,
        "architectures": ["Ministral3ForCausalLM"],
        "model_type": "ministral3",
        "rope_parameters": {
            **_YARN,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "mscale": 0.7,
            "mscale_all_dim": 0.3,
            "llama_4_scaling_beta": 0.3,
        },
    },
    "phi3: phi-4": {
        **_PHI,
        "rope_parameters": {"rope_type": "default", "rope_theta": 250000.0},
    },
    "phi3: long factors": {
        **_PHI,
        "original_max_position_embeddings": 32,
        "max_position_embeddings": 128,
        "rope_parameters": _LONGROPE,
    },
    "phi3: short factors, tied": {
        **_PHI,
        "tie_word_embeddings": True,
        "original_max_position_embeddings": 1024,
        "max_position_embeddings": 4096,
        "rope_parameters": {**_LONGROPE, "original_max_position_embeddings": 1024},
    },
    "gemma3: softcap": {**_GEMMA, **_GEMMA_TEXT, "final_logit_softcapping": 5.0},
    "gemma3: linear rope, vision": {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "mm_tokens_per_image": 4,
        "boi_token_index": 297,
        "eoi_token_index": 298,
        "image_token_index": 299,
        "text_config": {
            **_GEMMA,
            "model_type": "gemma3_text",
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        "vision_config": SIGLIP,
    },
    "gemma3: as many layers as 27B": {
        **_GEMMA,
        **_GEMMA_TEXT,
        "num_hidden_layers": 62,
        "hidden_size": 32,
        "head_dim": 16,
        "intermediate_size": 32,
        "query_pre_attn_scalar": 8,
    },
    "gemma3: layer kinds of its own": {
        **_GEMMA,
        **_GEMMA_TEXT,
        "num_hidden_layers": 4,
        "layer_types": [
            "full_attention",
            "sliding_attention",
            "full_attention",
            "sliding_attention",
        ],
    },
}


def quantizable(model: str) -> Config:
    """Return a wider variant of a model, for block types of 256 values.

    Nine layers: llama-quantize spends more bits on the first and the last eighth.
    """
    return _wider(DENSE[model])


def _wider(config: Config) -> Config:
    changed = {
        key: _wider(value) if key == "text_config" else value for key, value in config.items()
    }
    if "hidden_size" in changed:
        changed |= {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 9}
        changed.pop("layer_types", None)
    if "query_pre_attn_scalar" in changed:
        changed |= {"head_dim": 64, "query_pre_attn_scalar": 64}
    return changed
