"""Twelve shapes of models, 0.1B to 70B, with every kind of attention; and a few more."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from edgekit.catalogue import load_models
from edgekit.facts import ModelCard

TWELVE: Final = (
    "mistral-small-24b-2501",  # grouped queries, heads narrower than the hidden state
    "llama-3.3-70b",  # grouped queries
    "qwen2.5-coder-7b",  # biases
    "phi-4",  # fused matrices
    "gemma-3-27b",  # sliding windows, tied embeddings
    "gpt-oss-20b",  # sliding windows, sinks, a mixture with biases
    "llama-4-scout",  # chunks, a mixture of one and a shared expert
    "qwen3-coder-30b-a3b",  # a mixture of eight
    "deepseek-coder-v2-lite",  # latent attention, a mixture with shared experts
    "ministral-3-3b-2512",  # heads wider than the hidden state, tied
    "pocket",
    "plain-0.1b",  # every head has keys of its own
)
MORE: Final = ("deepseek-v3", "llama-4-maverick", "muse-glimmer-30b", "codellama-34b")

_PLAIN: Final[dict[str, object]] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "intermediate_size": 2048,
    "vocab_size": 32000,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


def card(name: str) -> ModelCard:
    """A card of the catalogue, or the plain model that is in none."""
    models = load_models()
    if name != "plain-0.1b":
        return models[name]
    return replace(models["pocket"], id=name, config=_PLAIN, header_bytes=None, gguf_arch="llama")
