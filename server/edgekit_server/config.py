"""All settings of one server, with their defaults. Frozen: nothing changes after start."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter to load; `scale` is what requests get that name no adapters."""

    name: str
    path: Path
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Settings of one engine child. `None` leaves the choice to the engine, which reports it."""

    model_path: Path
    model_id: str
    n_ctx: int = 8192
    """KV cells of all sequences together."""
    n_seq_max: int = 4
    n_batch: int = 2048
    n_ubatch: int = 512
    n_gpu_layers: int = -1
    n_threads: int | None = None
    use_extra_bufts: bool = True
    """False keeps weights out of the CPU's repacked and AMX buffers; the canary decides."""
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attn: bool | None = None
    max_queue: int | None = None
    """Requests that may wait; None is 8 x n_seq_max."""
    kv_mode: str = "auto"
    """unified: any sequence may use all of n_ctx; streams: each has n_ctx / n_seq_max of its own
    and can hold no more; auto: see engine/kvmode.py."""
    host_cache_bytes: int = 0
    """Host RAM for the KV of sequences that lost their place; 0: none."""
    disk_cache: Path | None = None
    """Folder that keeps such KV over restarts, 8 GiB of it; None: none. Anyone who can read it
    can read the prompts."""
    speculation: str = "auto"
    """auto (prompt lookup where it pays), off, or draft (needs `draft_model`)."""
    draft_model: Path | None = None
    deadline_s: float | None = None
    """Longest life of any request, from intake; None: none."""
    itl_target_ms: float = 500.0
    """A prompt's chunks shrink while other sequences decode until a step takes about this."""
    adapters: tuple[Adapter, ...] = ()
    pooling: str | None = None
    """How a text becomes one vector: mean, cls, last or none; None: as the model says."""
    embed_ctx: int = 2048
    """The most tokens of a text to be embedded. Costs KV memory from the first one on."""


ROLES = ("chat", "completion", "embeddings", "rerank")
"""What a model is there for. Requests that name no model go to the first one of their role."""


@dataclass(frozen=True, slots=True)
class Notice:
    """What a model's licence asks. `shown` is what users must see; `text` is for /licence."""

    licence: str
    shown: str | None
    text: str


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One of a server's models, and how it shares the memory with the others."""

    engine: EngineConfig
    aliases: tuple[str, ...] = ()
    """Other names that clients may ask for the model by."""
    roles: tuple[str, ...] = ()
    """Of ROLES; none: whatever the model can do."""
    preload: bool = False
    """Load at start. The first model always is."""
    pinned: bool = False
    """Loaded at start, never unloaded."""
    memory_bytes: int | None = None
    """What it takes while loaded, as predicted; needed where there is a memory budget."""
    notice: Notice | None = None
    """None where nobody said what the model comes under."""


@dataclass(frozen=True, slots=True)
class ServeConfig:
    engine: EngineConfig
    """The first model's."""
    host: str = "127.0.0.1"
    port: int = 8484
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    aliases: tuple[str, ...] = ()
    """Of the model, where there is one only."""
    models: tuple[ModelConfig, ...] = ()
    """All models where there are several; the first one has `engine`. Empty: `engine` alone."""
    memory_budget_bytes: int | None = None
    """What loaded models may take together; None: no limit, and none makes room for another."""
    idle_unload_s: float | None = None
    """An unpinned model that nobody used for so long is unloaded until somebody asks for it."""
    load_wait_s: float = 240.0
    """How long a request waits for its model to find room, and again for it to load, before it
    gets a 503."""
    max_body_bytes: int = 32 * 1024 * 1024
    keepalive_s: float = 10.0
    """A comment line is sent on a silent stream this often."""
    restart_max_backoff_s: float = 30.0
    watchdog_s: float | None = 120.0
    """An engine that gets nothing done for so long while requests are open is restarted; None:
    never. A finished graph node counts as done, and the longest one of a 24-billion-parameter
    model (512 rows through one matrix) takes half a minute on the slowest CPU that can hold it."""
    swap: Path | None = None
    """A file that says which model's place another file takes; see swap.py."""
    report: Path | None = None
    """A latency report (`edgekit.bench/1`) for the page to show; read anew whenever it changes."""

    def served(self) -> tuple[ModelConfig, ...]:
        """Return all models, the first one first."""
        return self.models or (ModelConfig(self.engine, aliases=self.aliases, preload=True),)
