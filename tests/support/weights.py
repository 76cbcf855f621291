"""Bytes that look like weights to a fetcher, and a repository of them."""

from __future__ import annotations

import json
import random

HEAD = b'{"__metadata__":{}}'


def safetensors(size: int, seed: int = 0) -> bytes:
    """Return `size` bytes that begin like a safetensors file."""
    start = len(HEAD).to_bytes(8, "little") + HEAD
    return (start + random.Random(seed).randbytes(max(0, size - len(start))))[:size]


def repository(*sizes: int, seed: int = 0) -> dict[str, bytes]:
    """Return a checkpoint's files: shards of these sizes and some texts."""
    total = len(sizes)
    names = [f"model-{i + 1:05d}-of-{total:05d}.safetensors" for i in range(total)]
    files = {n: safetensors(s, seed + i) for i, (n, s) in enumerate(zip(names, sizes, strict=True))}
    index = {"weight_map": {f"t{i}": n for i, n in enumerate(names)}}
    return {
        "README.md": b"a model\n",
        "config.json": b'{"model_type": "mistral"}',
        "model.safetensors.index.json": json.dumps(index).encode(),
        "empty.safetensors.index.json": b"",
        **files,
    }
