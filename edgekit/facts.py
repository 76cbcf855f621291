"""The records of the catalogue: models, devices, file types, licences, families of devices.

Frozen and plain. Sizes are bytes, bandwidth is 10^9 bytes per second, peaks are 10^12 floating
point operations per second. None is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

GIB: Final = 1024**3
UNPACK_CLASSES: Final = ("k", "q4", "q8", "float")

MemoryKind = Literal["dedicated", "unified", "shared"]


@dataclass(frozen=True, slots=True)
class Licence:
    """`commercial_use` is None when nobody has read the text.

    `mau_limit`: with more monthly active users than this the grant does not hold. `eu_clause`:
    what it withholds in the EU. `attribution`: what must be shown or named. `text` is a file of
    `licences/` where the text may be copied freely, else `url` says where to read it.
    """

    name: str
    spdx: str | None
    commercial_use: bool | None
    acceptance_required: bool
    conditions: str | None
    mau_limit: int | None = None
    eu_clause: str | None = None
    attribution: str | None = None
    url: str | None = None
    text: str | None = None

    @property
    def label(self) -> str:
        """What people call it: the SPDX name where SPDX lists it, else its own."""
        own = self.spdx is None or self.spdx.startswith("LicenseRef-")
        return self.name if own or self.spdx is None else self.spdx


@dataclass(frozen=True, slots=True)
class Source:
    """Where weights come from.

    `kind` is "hub" (repository id), "builtin" (a folder of ours) or "folder" (one of the user's).
    """

    kind: str
    location: str
    revision: str | None
    allow: tuple[str, ...]
    bytes: int | None
    unpinned: str | None = None
    """Why a hub source has no revision; it is then pinned to what the hub says at the fetch."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One published score of a model, as its maker reports it; `note` qualifies it."""

    name: str
    score: float
    note: str | None


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
    header_bytes: int | None
    """GGUF header: metadata and vocabulary, the same for every file type; see
    `memory.file_bytes` for one that is not known."""
    notes: str | None
    path: Path
    gguf_arch: str | None = None
    """llama.cpp's name of the architecture."""
    params_active: int | None = None
    """Parameters that its maker calls active per token, for a mixture of experts."""
    gated: bool | None = None
    """Whether the hub asks for an account and consent before it hands the weights out."""
    gate: str | None = None
    released: str | None = None
    vision: str | None = None
    evidence: tuple[Evidence, ...] = ()
    evidence_source: str | None = None
    facts_from: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()


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
    """`loss` is the published mean KL divergence from the unquantized model.

    `loss_imatrix` is the same with an importance matrix. A type that is not `common` is left
    out of lists and must be named.
    """

    id: str
    loss: float
    ppl: float | None
    unpack: str
    automatic: bool
    why_not_automatic: str | None
    basis: str
    loss_imatrix: float | None = None
    common: bool = True


@dataclass(frozen=True, slots=True)
class Family:
    """Constants of the speed formulas for devices of one kind; see families.toml.

    `decode` and `prefill` hold a constant for each term of `speed_terms`. The spreads are
    relative half-widths. `parent` is the wider family whose constants were the starting point.
    """

    id: str
    parent: str | None
    decode: Mapping[str, float]
    prefill: Mapping[str, float]
    decode_spread: float
    prefill_spread: float
    fitted_on: tuple[str, ...]
    """Ids of the devices with published rows that the constants were fitted on."""
    source: str
    tflops_per_watt: float | None = None
    """fp32 TFLOP/s that a watt sustains; less power than that lowers the clock."""
    gflops_per_core: float | None = None
    """Matrix products of a CPU core, where a device has no peak of its own."""
    unpack_cost: float = 1.0
    """Instructions per unpacked weight against a device with 8-bit dot products."""
    other_backends: Mapping[str, str] = field(default_factory=dict)
    """Families of the same hardware under another backend."""


@dataclass(frozen=True, slots=True)
class Published:
    """How a device's own published rows lie against its family: seconds there over seconds
    predicted, by class of file type, and what is left around that. `rows` counts them."""

    decode: Mapping[str, float]
    prefill: Mapping[str, float]
    decode_spread: float | None
    prefill_spread: float | None
    rows: int


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
    fp32_tflops: float | None = None
    measured_gb_s: float | None = None
    """Memory bandwidth that a benchmark other than llama.cpp reached."""
    sockets: int = 1
    published: Published | None = None
    arch: str | None = None
    compute_capability: str | None = None
    int8_tops: float | None = None
    fp16_tflops: float | None = None
    gpu_share: float | None = None
    """Share of unified memory that the GPU may use, where somebody observed it."""
    fanless: bool = False
    runs_engine: bool = True
    """False for hardware that llama.cpp cannot be loaded on at all."""
    count: int = 1
    """So many of them side by side; sizes are of all together, speeds of one."""
    price_date: str | None = None
    price_note: str | None = None
    watts: float | None = None
    price_usd: float | None = None
    probed: bool = False
    notes: tuple[str, ...] = ()
