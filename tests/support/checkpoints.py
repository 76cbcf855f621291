"""Synthetic checkpoints in Hugging Face layout: random weights, a real byte-level BPE tokenizer.

`make_checkpoint` writes what a download of a Mistral-shaped model holds: config, generation
config, sharded bf16 safetensors with an index, tokenizer.json with the tekken split pattern,
tokenizer_config.json with a chat template. Weights are seeded, so two calls agree byte for byte.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# fmt: off
CONTROL_TOKENS = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]",
    "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
)
# fmt: on

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)

StoredTensor = tuple[str, Sequence[int], bytes]
"""dtype, shape, bytes."""


def write_safetensors(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Write one safetensors file, tensors in the given order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [offset, offset + len(data)],
        }
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, _, data in tensors.values():
            file.write(data)


def make_checkpoint(
    folder: Path,
    *,
    hidden: int = 256,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 64,
    ffn: int = 512,
    vocab: int = 512,
    shards: int = 2,
    tied: bool = False,
    seed: int = 0,
    architecture: str = "MistralForCausalLM",
    dtype: str = "BF16",
    extra_config: Mapping[str, object] | None = None,
) -> Path:
    """Write a valid checkpoint into `folder` (created) and return it.

    `vocab` is at least 276: 20 control tokens and 256 bytes; the rest are synthetic merges.
    `architecture` may also be `LlamaForCausalLM` or `Qwen2ForCausalLM` (then with Q, K, V
    biases, as a Llama with `attention_bias` in `extra_config`). `dtype`: BF16, F16 or F32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, object] = {
        "architectures": [architecture],
        "model_type": architecture.removesuffix("ForCausalLM").lower(),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
        **(extra_config or {}),
    }
    _write_json(folder / "config.json", config)
    _write_json(
        folder / "generation_config.json",
        {"bos_token_id": 1, "eos_token_id": 2, "temperature": 0.15},
    )
    write_tokenizer(folder, vocab)

    shapes = tensor_shapes(
        hidden=hidden,
        layers=layers,
        q_rows=heads * head_dim,
        kv_rows=kv_heads * head_dim,
        ffn=ffn,
        vocab=vocab,
        tied=tied,
        qkv_bias=architecture.startswith("Qwen2") or bool(config.get("attention_bias")),
        output_bias=bool(config.get("attention_bias")),
    )
    rng = np.random.default_rng(seed)
    names = list(shapes)
    weight_map: dict[str, str] = {}
    total = 0
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = names[len(names) * shard // shards : len(names) * (shard + 1) // shards]
        tensors = {name: _random_tensor(rng, name, shapes[name], dtype) for name in part}
        write_safetensors(folder / file, tensors)
        weight_map |= dict.fromkeys(part, file)
        total += sum(len(data) for _, _, data in tensors.values())
    _write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": weight_map},
    )
    return folder


def tensor_shapes(
    *,
    hidden: int,
    layers: int,
    q_rows: int,
    kv_rows: int,
    ffn: int,
    vocab: int,
    tied: bool,
    qkv_bias: bool,
    output_bias: bool = False,
) -> dict[str, tuple[int, ...]]:
    """Return Hugging Face names and shapes (rows first) of a dense decoder."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for i in range(layers):
        base = f"model.layers.{i}"
        shapes[f"{base}.input_layernorm.weight"] = (hidden,)
        shapes[f"{base}.mlp.down_proj.weight"] = (hidden, ffn)
        shapes[f"{base}.mlp.gate_proj.weight"] = (ffn, hidden)
        shapes[f"{base}.mlp.up_proj.weight"] = (ffn, hidden)
        shapes[f"{base}.post_attention_layernorm.weight"] = (hidden,)
        for letter, rows in (("k", kv_rows), ("q", q_rows), ("v", kv_rows)):
            if qkv_bias:
                shapes[f"{base}.self_attn.{letter}_proj.bias"] = (rows,)
            shapes[f"{base}.self_attn.{letter}_proj.weight"] = (rows, hidden)
        if output_bias:
            shapes[f"{base}.self_attn.o_proj.bias"] = (hidden,)
        shapes[f"{base}.self_attn.o_proj.weight"] = (hidden, q_rows)
    shapes["model.norm.weight"] = (hidden,)
    if not tied:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def write_tokenizer(folder: Path, vocab: int, *, split: str = TEKKEN_SPLIT) -> None:
    """Write tokenizer.json and tokenizer_config.json for exactly `vocab` tokens."""
    n_merges = vocab - len(CONTROL_TOKENS) - 256
    if n_merges < 0:
        raise ValueError(f"vocab must be at least {len(CONTROL_TOKENS) + 256}, is {vocab}")
    alphabet = byte_alphabet()
    ids = {token: i for i, token in enumerate([*CONTROL_TOKENS, *alphabet])}
    merges = []
    for left, right in _merge_pairs(alphabet, n_merges):
        ids[left + right] = len(ids)
        merges.append([left, right])
    _write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "added_tokens": [
                {
                    "id": i,
                    "content": token,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
                for i, token in enumerate(CONTROL_TOKENS)
            ],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {
                        "type": "Split",
                        "pattern": {"Regex": split},
                        "behavior": "Isolated",
                        "invert": False,
                    },
                    {
                        "type": "ByteLevel",
                        "add_prefix_space": False,
                        "trim_offsets": True,
                        "use_regex": False,
                    },
                ],
            },
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": "<s>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                ],
                "pair": [
                    {"SpecialToken": {"id": "<s>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                    {"SpecialToken": {"id": "<s>", "type_id": 1}},
                    {"Sequence": {"id": "B", "type_id": 1}},
                ],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
            },
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": True,
                "vocab": ids,
                "merges": merges,
            },
        },
    )
    _write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": True,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "chat_template": CHAT_TEMPLATE,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


def byte_alphabet() -> list[str]:
    """Return the 256 printable stand-ins for bytes, in byte order (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    stand_in = 256
    letters = []
    for byte in range(256):
        if byte in printable:
            letters.append(chr(byte))
        else:
            letters.append(chr(stand_in))
            stand_in += 1
    return letters


def _merge_pairs(alphabet: Sequence[str], n: int) -> Iterator[tuple[str, str]]:
    """Yield `n` merges whose results are all different: byte pairs, then pair plus byte."""
    pairs = [(a, b) for a in alphabet for b in alphabet]
    yield from pairs[:n]
    left = n - len(pairs)
    for a, b in pairs:
        for c in alphabet:
            if left <= 0:
                return
            yield a + b, c
            left -= 1


def _random_tensor(
    rng: np.random.Generator, name: str, shape: tuple[int, ...], dtype: str
) -> StoredTensor:
    values = rng.standard_normal(math.prod(shape), dtype=np.float32)
    values *= np.float32(0.05)
    if name.endswith("norm.weight"):
        values += np.float32(1)
    return dtype, shape, encode_values(values, dtype)


def encode_values(values: npt.NDArray[np.float32], dtype: str) -> bytes:
    """Return the bytes of `values` as BF16 (the low half cut off), F16 or F32."""
    if dtype == "BF16":
        return (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16).tobytes()
    if dtype == "F16":
        return values.astype(np.float16).tobytes()
    return values.tobytes()


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
