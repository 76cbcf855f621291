"""Each dense architecture: transformers' own class, our GGUF, llama.cpp's logits and bytes."""

from pathlib import Path

import pytest

from edgekit_quantize import FILE_TYPES, convert
from tests.support import llama_oracle, tiny_models
from tests.support.dense_models import DENSE, quantizable
from tests.support.logits_oracle import compare, each_llama_logits, token_ids, transformers_logits

NUMBERS = {name: file_type.number for name, file_type in FILE_TYPES.items()}
N_TOKENS = 96
PLAIN_IDS = tiny_models.VOCAB - 4
"""The last ids stand for images in the models with a vision part."""


@pytest.mark.parametrize("model", DENSE)
def test_logits_are_transformers_logits(model: str, tmp_path: Path) -> None:
    theirs, jobs = [], []
    for seed in (0, 1):
        folder = tiny_models.save(DENSE[model], tmp_path / f"{seed}", seed)
        done = convert(folder, tmp_path / f"{seed}.gguf", "F32", threads=1)
        assert any("vision part" in reason for reason in done.reasons) == ("vision" in model)
        ids = token_ids(N_TOKENS, PLAIN_IDS, seed)
        theirs.append(transformers_logits(folder, ids))
        jobs.append((done.path, ids))
    for one, other in zip(each_llama_logits(jobs), theirs, strict=True):
        # llama.cpp looks GELU up in a table of half floats; the rest is exact up to summation.
        assert compare(one, other) < (2e-3 if "gemma" in model else 1e-5)


@pytest.mark.parametrize(
    ("model", "filetype"),
    [
        ("qwen3", "Q5_K_M"),
        ("mistral3: ministral, tied, vision", "Q4_K_M"),
        ("mistral3: plain text part, vision", "Q6_K"),
        ("phi3: phi-4", "Q4_K_M"),
        ("phi3: long factors", "Q3_K_L"),
        ("gemma3: softcap", "Q4_K_S"),
    ],
)
def test_quantized_files_are_llama_quantizes(model: str, filetype: str, tmp_path: Path) -> None:
    config = quantizable(model)
    if "long factors" in model:
        config["rope_parameters"] = {
            **config["rope_parameters"],
            "long_factor": [1.0 + i / 8 for i in range(24)],
            "short_factor": [1.0 + i / 64 for i in range(24)],
        }
    folder = tiny_models.save(config, tmp_path / "c", 0, dtype="bfloat16")
    convert(folder, tmp_path / "bf16.gguf", "BF16", threads=1)
    theirs = tmp_path / "theirs.gguf"
    llama_oracle.quantize(tmp_path / "bf16.gguf", {filetype: theirs}, NUMBERS)
    ours = convert(folder, tmp_path / "ours.gguf", filetype, threads=1)
    assert ours.path.read_bytes() == theirs.read_bytes()


def test_the_older_spelling_of_a_config_is_the_same_model(tmp_path: Path) -> None:
    """transformers 5 writes rope_parameters; what is on the hub says rope_theta beside."""
    folder = tiny_models.save(DENSE["gemma3: linear rope, vision"], tmp_path / "c", 0)
    new = convert(folder, tmp_path / "new.gguf", "F16", threads=1, name="Same")
    text = {
        **DENSE["gemma3: linear rope, vision"]["text_config"],
        "rope_local_base_freq": 10000.0,
        "rope_theta": 1000000.0,
    }
    tiny_models.edit_config(folder, {"text_config": text})
    old = convert(folder, tmp_path / "old.gguf", "F16", threads=1, name="Same")
    assert read_keys(new.path) == read_keys(old.path)


def read_keys(path: Path) -> dict[str, object]:
    from edgekit_quantize import read_header

    keys = dict(read_header(path).metadata)
    del keys["edgekit.source.digest"]
    return keys
