"""One saved sequence as a file: a line of JSON, then tokens, state and checkpoints.

The head names the engine the state fits; a checksum over the rest is compared before llama.cpp
sees a byte of it.
"""

from __future__ import annotations

import hashlib
import json
import sys
import zlib
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from edgekit_server.engine import splits
from edgekit_server.engine.checkpoints import Checkpoint
from edgekit_server.engine.resident import Saved

FORMAT = 1
MOST_HEADER = 1 << 20
"""Bytes of a head, far more than one takes."""
HEAD_BYTES = 1 << 20
SAMPLES, SAMPLE_BYTES = 16, 1 << 16


def model_digest(path: Path) -> str:
    """Return a digest of a model file: its size, its head, and samples of its tensors.

    Reading all of it would take longer than loading it. Two files of one shape and one head
    (a model trained further) differ in the samples.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in splits.files_of(path):
        size = part.stat().st_size
        digest.update(str(size).encode())
        with part.open("rb") as file:
            digest.update(file.read(HEAD_BYTES))
            for i in range(SAMPLES):
                file.seek(size * i // SAMPLES)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def compatibility(**parts: str | int | bool | None) -> str:
    """Return the digest of what a state depends on: model, KV types, layout, streams, adapters."""
    text = json.dumps({"format": FORMAT, "byteorder": sys.byteorder, **parts}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class BrokenError(Exception):
    """A file that is not what its name says."""


def digest(saved: Saved) -> str:
    """Return a name for a sequence: the digest of its tokens."""
    return hashlib.blake2b(saved.tokens.tobytes(), digest_size=16).hexdigest()


def write(path: Path, key: str, saved: Saved) -> None:
    """Write one sequence. Raises OSError."""
    parts = [np.frombuffer(saved.tokens, np.uint8), saved.blob]
    parts += [c.blob for c in saved.checkpoints]
    crc = 0
    for part in parts:
        crc = zlib.crc32(part.data, crc)
    head = {
        "format": FORMAT,
        "key": key,
        "n_tokens": len(saved.tokens),
        "n_bytes": saved.blob.nbytes,
        "checkpoints": [[c.n_tokens, c.blob.nbytes] for c in saved.checkpoints],
        "crc32": crc,
    }
    with path.open("wb") as file:
        file.write(json.dumps(head).encode() + b"\n")
        for part in parts:
            file.write(part.data)


def read_tokens(path: Path, key: str) -> array[int]:
    """Return the tokens of a file without its state. Raises BrokenError, OSError."""
    with path.open("rb") as file:
        head = _head(file.readline(MOST_HEADER), key)
        wanted = sum((head["n_tokens"] * 4, head["n_bytes"], *(n for _, n in head["checkpoints"])))
        if path.stat().st_size != file.tell() + wanted:
            raise BrokenError("its size is not what its head says")
        tokens = array("i")
        tokens.frombytes(file.read(head["n_tokens"] * 4))
        return tokens


def read(path: Path, key: str) -> Saved:
    """Return a whole file. Raises BrokenError, OSError."""
    with path.open("rb") as file:
        head = _head(file.readline(MOST_HEADER), key)
        body = np.fromfile(file, np.uint8)
    sizes = [head["n_tokens"] * 4, head["n_bytes"], *(n for _, n in head["checkpoints"])]
    if len(body) != sum(sizes):
        raise BrokenError("its size is not what its head says")
    if zlib.crc32(body.data) != head["crc32"]:
        raise BrokenError("its checksum does not fit")
    tokens_part, blob, *rest = np.split(body, np.cumsum(sizes)[:-1])
    tokens = array("i")
    tokens.frombytes(tokens_part.tobytes())
    places = [n for n, _ in head["checkpoints"]]
    return Saved(tokens, blob, tuple(map(Checkpoint, places, rest)))


def _head(line: bytes, key: str) -> dict[str, Any]:
    try:
        head = json.loads(line)
        numbers = [head["n_tokens"], head["n_bytes"], head["crc32"]]
        numbers += [n for pair in head["checkpoints"] for n in pair]
        pairs = all(len(pair) == 2 for pair in head["checkpoints"])
        sound = pairs and all(isinstance(n, int) and n >= 0 for n in numbers)
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenError("it has no head of ours") from error
    if not sound or head.get("format") != FORMAT or head.get("key") != key:
        raise BrokenError("its head is of another format or engine")
    return dict(head)
