"""The records of the catalogue: models, devices, file types, licences, families of devices.

Frozen and plain. Sizes are bytes, bandwidth is 10^9 bytes per second, peaks are 10^12 floating
point operations per second. None is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

GIB: Final = 1024**3
UNPACK_CLASSES: Final = ("k", "q4", "q8", "float")

MemoryKind = Literal["dedicated", "unified", "shared"]


@dataclass(frozen=True, slots=True)
class Licence:
    """`commercial_use` is None when nobody has read the text."""

    name: str
    spdx: str | None
    commercial_use: bool | None
    acceptance_required: bool
    conditions: str | None


@dataclass(frozen=True, slots=True)
class Source:
    """Where weights come from. `kind` is "hub" (repository id) or "builtin" (a folder of ours)."""

    kind: str
    location: str
    revision: str | None
    allow: tuple[str, ...]
    bytes: int | None


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One model. `config` holds the values of its Hugging Face `config.json` that shape it."""

    id: str
    name: str
    aliases: tuple[str, ...]
    config: Mapping[str, object]
    sources: tuple[Source, ...]
    licence: Licence
    params: int
    n_ctx_train: int
    tools: str | None
    fim: bool | None
    header_bytes: int
    """GGUF header: metadata and vocabulary, the same for every file type."""
    notes: str | None
    path: Path


@dataclass(frozen=True, slots=True)
class AbsentModel:
    """A name people ask for that no public weights carry."""

    id: str
    name: str
    aliases: tuple[str, ...]
    why: str
    nearest: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FileType:
    """`loss` is the published mean KL divergence from the unquantized model."""

    id: str
    loss: float
    ppl: float | None
    unpack: str
    automatic: bool
    why_not_automatic: str | None
    basis: str


@dataclass(frozen=True, slots=True)
class Rate:
    """A fitted share of a peak and its relative half-width."""

    efficiency: Mapping[str, float]
    spread: float


@dataclass(frozen=True, slots=True)
class Family:
    """Constants of the speed formulas for devices of one kind; see families.toml."""

    id: str
    layer_us: float
    layer_us_per_core: float
    attention_ns: float
    small_batch: float
    decode: Rate
    decode_of_measured: float
    prefill_efficiency: float | None
    prefill_spread: float
    prefill_gflops_per_core: float | None
    unpack_gb_s_per_core: Mapping[str, float]
    fitted_on: tuple[str, ...]
    """Ids of the devices whose own measurements gave the decode constants."""
    source: str


@dataclass(frozen=True, slots=True)
class Device:
    """One device to plan for; None is unknown.

    `usable_bytes` is what the engine sees, `free_bytes` what a new process may take now (only
    on a probed machine). `host_bytes` is host memory for what stays off the accelerator.
    """

    id: str
    name: str
    vendor: str
    kind: str
    backend: str
    family: Family
    memory_kind: MemoryKind
    source: str
    aliases: tuple[str, ...] = ()
    reported_names: tuple[str, ...] = ()
    memory_bytes: int | None = None
    usable_bytes: int | None = None
    free_bytes: int | None = None
    host_bytes: int | None = None
    overhead_bytes: int | None = None
    memory_options_gib: tuple[int, ...] = ()
    bandwidth_gb_s: float | None = None
    bandwidth_measured: bool = False
    peak_tflops: float | None = None
    cores: int | None = None
    gpu_cores: int | None = None
    decode: Rate | None = None
    prefill: Rate | None = None
    watts: float | None = None
    price_usd: float | None = None
    probed: bool = False
    notes: tuple[str, ...] = ()
