"""Tiny mixtures of experts (and Muse Glimmer) with every odd feature of their families.

Windows and original contexts are shorter than the 96 tokens that tests look at. Of what llama.cpp
builds in, the tiny models take over: Llama 4's chunks of 8192 and its 128 experts without Q and K
norms, DeepSeek V2-Lite's 27 layers (with other numbers of layers a rank of 0 must be written).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit_quantize.safetensors import SafetensorsFile
from edgekit_quantize.stored import FP8_VALUES
from tests.support import tiny_models
from tests.support.checkpoints import StoredTensor as Stored
from tests.support.checkpoints import write_safetensors
from tests.support.tiny_models import edit_config

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""What the 16 codes of MXFP4 mean (OCP Microscaling Formats 1.0)."""

_POSITIVE = FP8_VALUES["F8_E4M3"][:127]

COMMON: dict[str, object] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
YARN: dict[str, object] = {
    "rope_type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}


@dataclass(frozen=True, slots=True)
class Tiny:
    """A config for transformers, and what repositories write differently from it."""

    settings: Mapping[str, object]
    published: Mapping[str, object] = field(default_factory=dict)
    unpublished: tuple[str, ...] = ()


def save(name: str, folder: Path, seed: int, **changes: object) -> Path:
    """Write the checkpoint as its repository would; `changes` go to the model's own numbers."""
    tiny = MIXTURES[name]
    settings = dict(tiny.settings)
    text = settings.get("text_config")
    if isinstance(text, Mapping):
        settings["text_config"] = {**text, **changes}
    else:
        settings |= changes
    tiny_models.save(settings, folder, seed)
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **tiny.published}
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in tiny.unpublished}))
    return folder


def _rope(theta: float, **scaling: object) -> dict[str, object]:
    return {"rope_type": "default", "rope_theta": theta, **scaling}


_LLAMA4 = {
    **COMMON,
    "num_hidden_layers": 6,
    "head_dim": 32,
    "intermediate_size": 32,
    "intermediate_size_mlp": 96,
    "num_experts_per_tok": 1,
    "max_position_embeddings": 32768,
}
_LATENT = {
    **COMMON,
    "num_key_value_heads": 4,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 20,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
}


def _deepseek(scoring: str, method: str, mscale: float) -> dict[str, object]:
    """What DeepSeek's own config.json has: the older spelling, and code that nobody must run."""
    scaling = {key: value for key, value in YARN.items() if key != "rope_type"}
    return {
        "auto_map": {"AutoModelForCausalLM": "modeling_deepseek.NoSuchClass"},
        "rope_theta": 10000,
        "rope_scaling": {
            **scaling,
            "type": "yarn",
            "mscale": mscale,
            "mscale_all_dim": mscale,
        },
        "scoring_func": scoring,
        "topk_method": method,
        "moe_layer_freq": 1,
        "ep_size": 1,
        "seq_aux": True,
    }


_DEEPSEEK_DROPS = ("rope_parameters", "head_dim", "qk_head_dim", "rope_interleave", "mlp_bias")

MIXTURES = {
    "qwen3moe": Tiny(
        {
            **COMMON,
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "head_dim": 32,
            "intermediate_size": 96,
            "moe_intermediate_size": 32,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "rope_parameters": _rope(1e7),
        },
        {"rope_theta": 1e7, "rope_scaling": None, "num_experts": 8},
        ("rope_parameters", "num_local_experts"),
    ),
    "mixtral": Tiny(
        {
            **COMMON,
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "intermediate_size": 96,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "rope_parameters": _rope(1e6),
        }
    ),
    "llama4-scout": Tiny(
        {
            **_LLAMA4,
            "architectures": ["Llama4ForCausalLM"],
            "model_type": "llama4_text",
            "num_local_experts": 16,
            "interleave_moe_layer_step": 1,
            "rope_parameters": _rope(
                500000.0,
                rope_type="llama3",
                factor=16.0,
                low_freq_factor=1.0,
                high_freq_factor=1.0,
                original_max_position_embeddings=64,
            ),
        }
    ),
    "llama4-maverick": Tiny(
        {
            "architectures": ["Llama4ForConditionalGeneration"],
            "model_type": "llama4",
            "tie_word_embeddings": False,
            "text_config": {
                **_LLAMA4,
                "num_local_experts": 128,
                "interleave_moe_layer_step": 2,
                "use_qk_norm": False,
                "rope_parameters": _rope(500000.0),
            },
            "vision_config": {
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 128,
                "vision_output_dim": 32,
                "image_size": 28,
                "patch_size": 14,
                "pixel_shuffle_ratio": 0.5,
                "projector_input_dim": 32,
                "projector_output_dim": 32,
            },
        }
    ),
    "deepseek2-lite": Tiny(
        {
            **_LATENT,
            "architectures": ["DeepseekV2ForCausalLM"],
            "model_type": "deepseek_v2",
            "num_hidden_layers": 27,
            "q_lora_rank": None,
            "n_shared_experts": 2,
            "topk_method": "greedy",
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.0,
            "rope_parameters": _rope(1e4, **YARN, mscale=0.707, mscale_all_dim=0.707),
        },
        _deepseek("softmax", "greedy", 0.707),
        _DEEPSEEK_DROPS,
    ),
    "deepseek2": Tiny(
        {
            **_LATENT,
            "architectures": ["DeepseekV2ForCausalLM"],
            "model_type": "deepseek_v2",
            "q_lora_rank": 48,
            "n_shared_experts": 2,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 4,
            "routed_scaling_factor": 16.0,
            "rope_parameters": _rope(1e4, **YARN, mscale=1.0, mscale_all_dim=1.0),
        },
        _deepseek("softmax", "group_limited_greedy", 1.0),
        _DEEPSEEK_DROPS,
    ),
    "deepseek3": Tiny(
        {
            **_LATENT,
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            "q_lora_rank": 48,
            "n_shared_experts": 1,
            "n_group": 4,
            "topk_group": 2,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "num_mtp_layers": 0,
            "rope_parameters": _rope(1e4, **YARN, mscale=1.0, mscale_all_dim=1.0),
        },
        _deepseek("sigmoid", "noaux_tc", 1.0),
        _DEEPSEEK_DROPS,
    ),
    "gpt-oss": Tiny(
        {
            **COMMON,
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            "head_dim": 32,
            "intermediate_size": 64,
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            "sliding_window": 16,
            "rope_parameters": _rope(150000.0, **YARN),
        }
    ),
    "muse-glimmer": Tiny(
        {
            "architectures": ["MuseGlimmerForConditionalGeneration"],
            "model_type": "muse_glimmer",
            "text_config": {
                **COMMON,
                "num_hidden_layers": 8,
                "head_dim": 32,
                "intermediate_size": 96,
                "sliding_window": 16,
                "rope_parameters": _rope(500000.0),
            },
            "vision_config": {
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 64,
            },
            "out_hidden_size": 128,
            "projector_hidden_size": 32,
        }
    ),
}


def read_floats(folder: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Return the weights of a float32 checkpoint in one file."""
    file = SafetensorsFile(folder / "model.safetensors")
    return {
        name: np.frombuffer(file.view(tensor), np.float32).reshape(tensor.shape)
        for name, tensor in file.tensors.items()
    }


def write_like(folder: Path, new: Path, tensors: Mapping[str, Stored], **config: object) -> Path:
    """Write a copy of a checkpoint with other weights and some other settings."""
    shutil.copytree(folder, new, ignore=shutil.ignore_patterns("model.safetensors"))
    write_safetensors(new / "model.safetensors", tensors)
    edit_config(new, config)
    return new


def floats(tensors: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, Stored]:
    return {name: ("F32", t.shape, t.astype(np.float32).tobytes()) for name, t in tensors.items()}


def packed_experts(folder: Path, packed: Path, twin: Path, seed: int) -> None:
    """Write gpt-oss's experts as published (MXFP4), and the same values as floats."""
    rng = np.random.default_rng(seed)
    weights = read_floats(folder)
    stored = floats(weights)
    for name in [n for n in weights if n.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, columns, rows = weights[name].shape
        codes = rng.integers(0, 16, (experts, rows, columns // 32, 32)).astype(np.uint8)
        exponents = rng.integers(121, 124, codes.shape[:-1]).astype(np.uint8)
        values = E2M1[codes] * np.exp2(exponents.astype(np.float32) - 127)[..., None]
        weights[name] = values.reshape(experts, rows, columns).swapaxes(1, 2)
        blocks = codes[..., 0::2] | codes[..., 1::2] << 4
        del stored[name]
        stored[f"{name}_blocks"] = ("U8", blocks.shape, blocks.tobytes())
        stored[f"{name}_scales"] = ("U8", exponents.shape, exponents.tobytes())
    write_like(folder, packed, stored, quantization_config={"quant_method": "mxfp4"})
    write_like(folder, twin, floats(weights))


def fp8_blocks(folder: Path, packed: Path, twin: Path, size: int) -> None:
    """Write the matrices of layers as FP8 with a scale per block of `size`, and as floats."""
    weights = read_floats(folder)
    stored = floats(weights)
    for name, weight in weights.items():
        if weight.ndim != 2 or not name.endswith("proj.weight") or ".layers." not in name:
            continue
        rows, columns = weight.shape
        padded = np.zeros((-(-rows // size) * size, -(-columns // size) * size), np.float32)
        padded[:rows, :columns] = weight
        grid = padded.reshape(len(padded) // size, size, -1, size)
        scales = (np.abs(grid).max(axis=(1, 3)) / 448).astype(np.float32)
        spread = scales.repeat(size, 0).repeat(size, 1)[:rows, :columns]
        codes = np.searchsorted(_POSITIVE, np.abs(weight / spread)).clip(0, 126).astype(np.uint8)
        codes |= np.where(weight < 0, 128, 0).astype(np.uint8)
        weights[name] = FP8_VALUES["F8_E4M3"][codes] * spread
        stored[name] = ("F8_E4M3", codes.shape, codes.tobytes())
        stored[f"{name}_scale_inv"] = ("F32", scales.shape, scales.tobytes())
    settings = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [size, size]}
    write_like(folder, packed, stored, quantization_config=settings)
    write_like(folder, twin, floats(weights))
