"""The recipe against llama.cpp's own choice, for the shapes of real models.

The files are sparse: a real header, and holes where the weights would be. A dry run of
`llama_model_quantize` reads the header only.
"""

import os
from pathlib import Path

import pytest

from edgekit_quantize import architectures
from edgekit_quantize.architectures import RecipeParams, TensorSpec
from edgekit_quantize.errors import BadCheckpointError, UnknownFileTypeError
from edgekit_quantize.gguf_write import encode_header, lay_out
from edgekit_quantize.metadata import string
from edgekit_quantize.recipe import assign, quantizable, stored_type, weights_bytes
from edgekit_quantize.tensor_types import FILE_TYPES, TENSOR_TYPES, align
from tests.support import llama_oracle


def dense(
    name: str, n_layer: int, hidden: int, heads: int, kv: int, dim: int, ffn: int, vocab: int,
    tied: bool = False,
) -> dict[str, object]:  # fmt: skip
    return {
        "architectures": [name],
        "num_hidden_layers": n_layer,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "head_dim": dim,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": tied,
    }


SHAPES = {
    "mistral-small-24b": dense("MistralForCausalLM", 40, 5120, 32, 8, 128, 32768, 131072),
    "qwen2.5-coder-7b": dense("Qwen2ForCausalLM", 28, 3584, 28, 4, 128, 18944, 152064),
    "llama-3.3-70b": dense("LlamaForCausalLM", 80, 8192, 64, 8, 128, 28672, 128256),
    "qwen2.5-72b": dense("Qwen2ForCausalLM", 80, 8192, 64, 8, 128, 29568, 152064),
    "codellama-13b, no gqa": dense("LlamaForCausalLM", 40, 5120, 40, 40, 128, 13824, 32016),
    "tied": dense("LlamaForCausalLM", 16, 2048, 32, 8, 64, 8192, 128256, tied=True),
    "no rows of 256": dense("LlamaForCausalLM", 9, 480, 5, 5, 96, 1376, 1000),
    "no rows of 32": dense("LlamaForCausalLM", 3, 328, 4, 4, 82, 1000, 1000),
}


def write_sparse_bf16(path: Path, config: dict[str, object]) -> None:
    architecture = architectures.for_config(config)
    specs = architecture.tensors(config)
    tensors = lay_out(specs, [stored_type(spec) for spec in specs])
    keys = [string("general.architecture", architecture.name), *architecture.metadata(config)]
    header = encode_header(keys, tensors)
    path.write_bytes(header)
    os.truncate(path, len(header) + align(tensors[-1].offset + tensors[-1].bytes))


@pytest.mark.parametrize("name", SHAPES)
def test_every_type_is_llama_quantizes(name: str, tmp_path: Path) -> None:
    config = SHAPES[name]
    write_sparse_bf16(tmp_path / "bf16.gguf", config)
    numbers = {filetype: entry.number for filetype, entry in FILE_TYPES.items()}
    answer = llama_oracle.call(
        {
            "do": "dry_run",
            "source": str(tmp_path / "bf16.gguf"),
            "numbers": list(numbers.values()),
        }
    )
    architecture = architectures.for_config(config)
    specs = architecture.tensors(config)
    for filetype, number in numbers.items():
        theirs = {tensor: after.upper() for tensor, (_, after) in answer[str(number)].items()}
        types = assign(specs, filetype, architecture.recipe_params(config))
        ours = {spec.name: kind.name for spec, kind in zip(specs, types, strict=True)}
        assert ours == theirs, filetype
        assert list(ours) == list(theirs), "order of the tensors in the file"


def test_order_of_the_input_does_not_matter() -> None:
    config = SHAPES["mistral-small-24b"]
    architecture = architectures.for_config(config)
    specs = architecture.tensors(config)
    params = architecture.recipe_params(config)
    forward = assign(specs, "Q4_K_M", params)
    assert assign(specs[::-1], "Q4_K_M", params) == forward[::-1]


def test_weights_bytes_is_what_a_published_file_holds() -> None:
    # Data section of the Mistral Small 24B 2501 GGUFs: the BF16 parameters, norms in F32.
    config = SHAPES["mistral-small-24b"]
    norms = 5120 * 81
    assert weights_bytes(config, "BF16") == 2 * 23_572_403_200 + 2 * norms
    assert 14.30e9 < weights_bytes(config, "Q4_K_M") < 14.34e9
    assert weights_bytes(config, "F32") == 4 * 23_572_403_200


def test_weights_bytes_needs_only_the_config() -> None:
    with pytest.raises(BadCheckpointError):
        weights_bytes({"architectures": ["LlamaForCausalLM"]}, "Q4_K_M")
    with pytest.raises(UnknownFileTypeError):
        weights_bytes(SHAPES["tied"], "Q9_K")


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blk.0.attn_q.weight", (256, 256), True),
        ("blk.0.attn_norm.weight", (256,), False),
        ("blk.0.attn_q.bias", (256,), False),
        ("blk.0.ffn_gate_inp.weight", (256, 8), False),
        ("blk.0.attn_q.weight", (256, 1), False),
        ("token_types.weight", (256, 2), False),
    ],
)
def test_quantizable(name: str, shape: tuple[int, ...], expected: bool) -> None:
    assert quantizable(TensorSpec(name, shape)) is expected


def test_eight_experts_keep_more_bits_in_attention() -> None:
    specs = [
        TensorSpec(f"blk.0.{name}.weight", (256, 256))
        for name in ("attn_k", "attn_output", "attn_v")
    ]
    types = assign(specs, "Q4_K_M", RecipeParams("llama", 1, 4, 4, n_expert=8))
    assert types == [TENSOR_TYPES["Q8_0"], TENSOR_TYPES["Q5_K"], TENSOR_TYPES["Q8_0"]]
