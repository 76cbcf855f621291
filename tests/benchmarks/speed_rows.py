"""Published measurements as inputs of the predictor: a device, a model's work, a test.

Reads any file with the columns `device_id, n_devices, backend, model, params_b, quant, model_gib,
flash_attn, test, n_prompt, n_gen, depth, concurrency, tok_s, active_b, trust, ttft_ms`. A row that
cannot be resolved is kept with the reason.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from edgekit import memory, speed_terms
from edgekit.catalogue import find_benchmark_shape, find_device, find_filetype, load_families
from edgekit.errors import EdgekitError, MissingInputError
from edgekit.facts import Device, ModelCard
from edgekit.work import Work, from_sizes, params, work

ENGINES = ("cuda", "metal", "vulkan", "rocm", "cpu", "opencl", "sycl")
"""Backends of llama.cpp; rows of other engines say nothing about ours."""

UNPACK = {"F16": "float", "BF16": "float", "F32": "float", "Q8_0": "q8", "Q4_0": "q4", "Q4_1": "q4"}
UNPACK |= {"MXFP4": "q4", "IQ4_NL": "q4", "UD-Q8_K_XL": "q8"}

NEAREST = {"q8": "Q8_0", "q4": "Q4_0", "float": "F16", "k": "Q4_K_M"}
"""File type whose mix of tensor types stands for one that the recipe does not make."""

DEFAULT_PROMPT, DEFAULT_OUTPUT = 512, 128
"""What llama-bench runs when nothing is said."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row that can be predicted; `seconds` is per token of one sequence (decode) or for the
    whole prompt (prefill)."""

    device: Device
    work: Work
    model: str
    test: str
    tokens: int
    depth: int
    users: int
    devices: int
    flash: bool
    tok_s: float
    gib: float
    ttft_ms: float | None
    source: str

    @property
    def cell(self) -> tuple[str, str, str]:
        return self.device.id, self.model, self.test

    @property
    def seconds(self) -> float:
        return (self.users if self.test == "tg" else self.tokens) / self.tok_s

    def terms(self) -> tuple[float, dict[str, float]]:
        """Base and terms of the predictor for this row."""
        if self.test == "tg":
            depth = self.depth + self.tokens / 2
            return speed_terms.decode(
                self.work, self.device, depth, self.users, flash=self.flash, devices=self.devices
            )
        found = speed_terms.prefill(
            self.work, self.device, self.tokens, self.depth, flash=self.flash, devices=self.devices
        )
        assert found is not None
        return found


class Unresolved(Exception):
    """Why a row cannot be predicted."""


def read(path: Path, trust: str = "AB") -> tuple[list[Row], Counter[str]]:
    """Rows of a file with the given trust, and how many were left out for which reason."""
    rows, lost = [], Counter[str]()
    with path.open(newline="", encoding="utf-8") as file:
        for record in csv.DictReader(file):
            if record["trust"] not in trust:
                continue
            try:
                rows.append(_row(record))
            except Unresolved as why:
                lost[str(why)] += 1
    return rows, lost


def _row(r: dict[str, str]) -> Row:
    if r["test"] not in ("pp", "tg"):
        raise Unresolved(f"test {r['test']!r} is neither pp nor tg")
    backends = [b for b in r["backend"].split("/") if b in ENGINES]
    if not backends:
        raise Unresolved(f"backend {r['backend']!r} is not llama.cpp")
    device = _device(r["device_id"], backends[0] if len(backends) == 1 else "")
    bits = r["quant"]
    if bits.lower() in ("", "unstated", "int4", "awq", "fp8", "nvfp4"):
        raise Unresolved(f"file type {bits!r} is none of llama.cpp's")
    gib = float(r["model_gib"]) if r["model_gib"] else None
    found, size = _work(r["model"], bits, gib)
    decode = r["test"] == "tg"
    tokens = int(r["n_gen"] or 0) if decode else int(r["n_prompt"] or 0)
    row = Row(
        device=device,
        work=found,
        model=r["model"],
        test=r["test"],
        tokens=tokens or (DEFAULT_OUTPUT if decode else DEFAULT_PROMPT),
        depth=int(r["depth"] or 0),
        users=int(r["concurrency"] or 1),
        devices=int(r["n_devices"] or 1),
        flash=r["flash_attn"] == "1",
        tok_s=float(r["tok_s"]),
        gib=size,
        ttft_ms=float(r["ttft_ms"]) if r["ttft_ms"] else None,
        source=r["source"],
    )
    if speed_terms.bandwidth(device) is None:
        raise Unresolved(f"{device.id}: its bandwidth is not known")
    if not decode and speed_terms.peak_flops(device) is None:
        raise Unresolved(f"{device.id}: its peak is not known")
    return row


@cache
def _device(name: str, backend: str) -> Device:
    try:
        device = find_device(name)
    except MissingInputError as error:
        raise Unresolved(f"device {name}: {error.message}") from error
    family = speed_terms.family_for(device.family, backend, load_families())
    return replace(device, family=family)


@cache
def _work(model: str, bits: str, gib: float | None) -> tuple[Work, float]:
    """The work of a model in a file type, and GiB of the file."""
    card = _card(model)
    unpack = UNPACK.get(bits.upper(), "k")
    try:
        if bits == "MXFP4":
            # Only experts are stored so; the rest is at 8 bits.
            table = memory.weights(card, "Q8_0")
        else:
            table = memory.weights(card, find_filetype(bits).id)
        return work(card, table, unpack), table.total / 1024**3
    except EdgekitError:
        pass
    try:
        table = memory.weights(card, NEAREST[unpack])
    except EdgekitError as error:
        raise Unresolved(f"model {model} as {bits}: {error.message}") from error
    # A mix that the recipe does not make: the nearest one, scaled to the size of the file.
    scale = gib * 1024**3 / table.total if gib else 1.0
    near = work(card, table, unpack)
    found = from_sizes(
        table.shape, params(card), near.dense_bytes * scale, near.expert_bytes * scale, unpack
    )
    return found, table.total * scale / 1024**3


@cache
def _card(model: str) -> ModelCard:
    try:
        return find_benchmark_shape(model).card()
    except EdgekitError as error:
        raise Unresolved(f"model {model}: {error.message}") from error
