"""The recipe against llama.cpp's own choice, for the shapes of real models.

The files are sparse: a real header, and holes where the weights would be. A dry run of
`llama_model_quantize` reads the header only.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edgekit_quantize import architectures
from edgekit_quantize.architectures import RecipeParams, TensorSpec, quantize_order
from edgekit_quantize.errors import BadCheckpointError, BadRecipeError, UnknownFileTypeError
from edgekit_quantize.metadata import string
from edgekit_quantize.recipe import (
    NO_OVERRIDES,
    Overrides,
    assign,
    choose,
    quantizable,
    type_reasons,
    weights_bytes,
)
from edgekit_quantize.tensor_types import FILE_TYPES, TENSOR_TYPES, tensor_bytes
from tests.support.quantize_oracle import Done, Run, runs
from tests.support.recipe_models import (
    Model,
    deepseek_v3,
    gpt_oss_120b,
    mixture,
    mixture_keys,
    write_skeleton,
)

DATA = Path(__file__).parents[1] / "data"


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


def write_sparse_bf16(path: Path, config: dict[str, object]) -> Path:
    architecture = architectures.for_config(config)
    specs = architecture.tensors(config)
    keys = [string("general.architecture", architecture.name), *architecture.metadata(config)]
    return write_skeleton(path, keys, specs)


def one_entry(folder: Path) -> str:
    """An importance matrix that is there and of no tensor: the choice of types looks no deeper."""
    np.savez(folder / "one.npz", none=np.ones(1, np.float32))
    return str(folder / "one.npz")


def assert_theirs(
    specs: Sequence[TensorSpec],
    params: RecipeParams,
    done: Done,
    filetype: str,
    *,
    imatrix: bool,
    overrides: Overrides = NO_OVERRIDES,
) -> None:
    """Our types are those of a dry run, name by name, in order and in bytes; or both refuse."""
    if done.error is not None:
        with pytest.raises(BadRecipeError) as caught:
            assign(specs, filetype, params, imatrix=imatrix, overrides=overrides)
        assert caught.value.code == "no_smaller_type"
        assert "no tensor type fallback" in done.error
        return
    types = assign(specs, filetype, params, imatrix=imatrix, overrides=overrides)
    ours = {spec.name: kind.name for spec, kind in zip(specs, types, strict=True)}
    assert ours == done.types, (filetype, imatrix)
    assert list(ours) == list(done.types), "order of the tensors in the file"
    size = sum(tensor_bytes(kind, spec.shape) for spec, kind in zip(specs, types, strict=True))
    assert f"{size / 2**20:.2f}" == f"{done.mib:.2f}", (filetype, imatrix)


def assert_every_type(
    source: Path, specs: Sequence[TensorSpec], params: RecipeParams, folder: Path
) -> int:
    weighed = one_entry(folder)
    cases = [(name, with_it) for name in FILE_TYPES for with_it in (False, True)]
    wanted = [
        Run(str(source), FILE_TYPES[n].number, imatrix=weighed if w else None) for n, w in cases
    ]
    for (name, with_it), done in zip(cases, runs(wanted), strict=True):
        assert_theirs(specs, params, done, name, imatrix=with_it)
    return len(cases)


@pytest.mark.parametrize("name", SHAPES)
def test_every_type_is_llama_quantizes(name: str, tmp_path: Path) -> None:
    config = SHAPES[name]
    source = write_sparse_bf16(tmp_path / "bf16.gguf", config)
    architecture = architectures.for_config(config)
    specs = architecture.tensors(config)
    assert assert_every_type(source, specs, architecture.recipe_params(config), tmp_path) == 70


MIXTURES = {
    "mixtral-8x7b": (RecipeParams("llama", 32, 32, 8, 8), (4096, 128, 14336, 32000), 0),
    "qwen3-30b-a3b": (RecipeParams("qwen3moe", 48, 32, 4, 128), (2048, 128, 768, 151936), 0),
    "a shared expert, no gqa": (RecipeParams("llama", 9, 4, 4, 16), (512, 128, 352, 1000), 704),
    "four experts": (RecipeParams("llama", 17, 4, 4, 4), (512, 128, 256, 1000), 0),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_every_type_of_mixtures_is_llama_quantizes(name: str, tmp_path: Path) -> None:
    params, (hidden, dim, ffn, vocab), shared = MIXTURES[name]
    specs = mixture(params, hidden, dim, ffn, vocab, shared=shared)
    source = write_skeleton(tmp_path / "m.gguf", mixture_keys(params, hidden, ffn), specs)
    assert assert_every_type(source, specs, params, tmp_path) == 70


OVERRIDES = {
    # What a pattern decides does not advance the counters of the other layers.
    "patterns": Overrides(
        ((r"blk\.[0-3]\.attn_v", "Q8_0"), ("blk.1..*ffn_down", "IQ3_S"), ("attn_k", "BF16"))
    ),
    "the output's type": Overrides(output="Q8_0"),
    "both ends": Overrides((("output", "Q4_0"),), output="Q5_1", embedding="Q2_K"),
    "pure": Overrides((("ffn_gate", "Q6_K"),), pure=True),
}


@pytest.mark.parametrize("shape", ["mistral-small-24b", "tied", "no rows of 256"])
def test_overrides_are_llama_quantizes(shape: str, tmp_path: Path) -> None:
    source = write_sparse_bf16(tmp_path / "bf16.gguf", SHAPES[shape])
    specs, params = _from_config(SHAPES[shape])
    kinds = ["F16", "Q4_K_M", "Q3_K_M", "IQ4_XS", "Q4_K_S", "Q2_K", "MXFP4_MOE"]
    cases = [(name, wanted) for name in kinds for wanted in OVERRIDES.values()]
    if shape == "no rows of 256":
        # Types of both ends are taken as they are, and these do not fit.
        with pytest.raises(BadRecipeError) as caught:
            assign(specs, "Q4_K_M", params, overrides=OVERRIDES["both ends"])
        assert caught.value.code == "row_not_blocks"
        cases = [(name, wanted) for name, wanted in cases if wanted.embedding is None]
    asked = [
        Run(
            str(source),
            FILE_TYPES[name].number,
            tensor_types=tuple((p, TENSOR_TYPES[t].id) for p, t in wanted.tensors),
            output=TENSOR_TYPES[wanted.output].id if wanted.output else None,
            embedding=TENSOR_TYPES[wanted.embedding].id if wanted.embedding else None,
            pure=wanted.pure,
        )
        for name, wanted in cases
    ]
    for (name, wanted), done in zip(cases, runs(asked), strict=True):
        assert_theirs(specs, params, done, name, imatrix=False, overrides=wanted)


def test_what_the_checkpoint_stores_in_blocks_stays() -> None:
    specs = [TensorSpec("blk.0.ffn_up_exps.weight", (2880, 64, 4), "MXFP4")]
    params = RecipeParams("gpt-oss", 1, 64, 8, 4)
    (choice,) = choose(specs, "Q4_K_M", params)
    assert (choice.type.name, choice.reason) == ("MXFP4", "MXFP4 as in the checkpoint")
    with pytest.raises(BadRecipeError, match="cannot become Q8_0") as caught:
        choose(specs, "Q4_K_M", params, overrides=Overrides((("exps", "Q8_0"),)))
    assert caught.value.code == "native_type"


def test_reasons_name_what_deviates() -> None:
    specs = [TensorSpec(f"blk.{i}.ffn_down.weight", (1408, 256)) for i in range(9)]
    wanted = Overrides(((r"blk\.3\.", "Q8_0"),))
    chosen = choose(specs, "Q4_K_M", RecipeParams("llama", 9, 4, 4), overrides=wanted)
    said = list(type_reasons(specs, chosen, FILE_TYPES["Q4_K_M"]))
    assert said[0] == "Q4_K_M by llama-quantize's rules: 4 Q5_0, 5 Q8_0"
    assert "blk.3.ffn_down.weight: Q8_0 as asked by pattern" in said
    assert any("Q5_0 instead of Q4_K: rows of 1408 are no whole blocks" in line for line in said)


def _from_config(config: dict[str, object]) -> Model:
    architecture = architectures.for_config(config)
    return architecture.tensors(config), architecture.recipe_params(config)


def _qwen3(n_layer: int, hidden: int, heads: int, ffn: int) -> dict[str, object]:
    return dense("Qwen3ForCausalLM", n_layer, hidden, heads, 8, 128, ffn, 151936)


GEMMA_4B = dense("Gemma3ForCausalLM", 34, 2560, 8, 4, 256, 10240, 262144, tied=True) | {
    "sliding_window": 1024,
    "hidden_activation": "gelu_pytorch_tanh",
}
SNAPSHOTS = {
    "deepseek-v3.1": deepseek_v3,
    "gpt-oss-120b": gpt_oss_120b,
    "gemma-3-4b-it": lambda: _from_config(GEMMA_4B),
    "meta-llama-3.1-70b-instruct": lambda: _from_config(SHAPES["llama-3.3-70b"]),
    "qwen3-0.6b": lambda: _from_config(_qwen3(28, 1024, 16, 3072)),
    "qwen3-14b": lambda: _from_config(_qwen3(40, 5120, 40, 17408)),
}


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_types_are_those_that_upstream_recorded(name: str) -> None:
    """tests/snapshots/NAME.schema of llama.cpp 0.5.0, kept as lines and sha256 per file type.

    A line is `tensor TYPE`, in the order of the file, for each tensor that may be quantized and
    is not of the file type's default.
    """
    recorded = json.loads((DATA / "type_snapshots.json").read_text())[name]
    specs, params = SNAPSHOTS[name]()
    specs = sorted(filter(quantizable, specs), key=lambda spec: quantize_order(spec.name))
    assert len(recorded) == 33
    for filetype, expected in recorded.items():
        types = assign(specs, filetype, params)
        default = FILE_TYPES[filetype].default
        lines = [f"{s.name} {t.name}\n" for s, t in zip(specs, types, strict=True) if t != default]
        digest = hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
        assert [len(lines), digest] == expected, (filetype, lines[:3])


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
