"""A tiny synthetic GGUF in Mistral's shape: random weights, byte-level tekken vocabulary.

For tests of machinery that need real llama.cpp but no real language.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

CONTROL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]"]
MERGES = ["a a", "aa aa", "t h", "th e", "i n", "e r", "Ġ th", "Ġ a"]
HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN = 64, 2, 4, 2, 16, 128
TEMPLATE = "{{ bos_token }}{% for m in messages %}[INST]{{ m.content }}[/INST]{% endfor %}"


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-in for each byte, in byte order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(spare)) for b in range(256)]


def vocabulary() -> list[str]:
    merged = [merge.replace(" ", "") for merge in MERGES]
    return [*CONTROL, *byte_alphabet(), *merged]


def write_model(
    path: Path,
    *,
    n_ctx_train: int = 2048,
    quantized: bool = False,
    seed: int = 1,
    pre: str = "tekken",
    fim_keys: bool = False,
    n_filler: int = 0,
    head_dim: int = HEAD_DIM,
    more_control: Sequence[str] = (),
    template: str = TEMPLATE,
    arch: str = "llama",
    edit: Callable[[str, NDArray[np.float32]], NDArray[np.float32]] | None = None,
    extra: Callable[[gguf.GGUFWriter], None] | None = None,
) -> Path:
    """Write the model; `quantized`: matrices in Q4_0, else F32; `n_filler`: more vocabulary.

    `edit` changes a matrix, by name, after it was drawn; `extra` adds what another `arch` needs.
    """
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name("synthetic")
    writer.add_context_length(n_ctx_train)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    tokens = [*vocabulary(), *(f"filler{i}" for i in range(n_filler)), *more_control]
    controls = {*CONTROL, *more_control}
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if t in controls else normal for t in tokens])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_chat_template(template)
    if fim_keys:
        writer.add_uint32("tokenizer.ggml.fim_pre_token_id", CONTROL.index("[PREFIX]"))

    def add(name: str, *shape: int, gain: float = 1.0) -> None:
        data = rng.standard_normal(shape, np.float32) * np.float32(gain / np.sqrt(shape[-1]))
        data = data if edit is None else edit(name, data)
        if quantized:
            packed = gguf.quants.quantize(data, gguf.GGMLQuantizationType.Q4_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
        else:
            writer.add_tensor(name, data)

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(HIDDEN, np.float32))

    add("token_embd.weight", len(tokens), HIDDEN, gain=8.0)
    norm("output_norm.weight")
    add("output.weight", len(tokens), HIDDEN, gain=4.0)
    for i in range(LAYERS):
        norm(f"blk.{i}.attn_norm.weight")
        norm(f"blk.{i}.ffn_norm.weight")
        add(f"blk.{i}.attn_q.weight", HEADS * head_dim, HIDDEN, gain=2.0)
        add(f"blk.{i}.attn_k.weight", KV_HEADS * head_dim, HIDDEN, gain=2.0)
        add(f"blk.{i}.attn_v.weight", KV_HEADS * head_dim, HIDDEN)
        add(f"blk.{i}.attn_output.weight", HIDDEN, HEADS * head_dim)
        add(f"blk.{i}.ffn_gate.weight", FFN, HIDDEN)
        add(f"blk.{i}.ffn_up.weight", FFN, HIDDEN)
        add(f"blk.{i}.ffn_down.weight", HIDDEN, FFN)
    if extra is not None:
        extra(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
