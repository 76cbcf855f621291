"""The caches behind KV memory, as the settings ask for them."""

from __future__ import annotations

import sys

from edgekit_server.config import EngineConfig
from edgekit_server.engine import kvfile
from edgekit_server.engine.adapters import NO_ADAPTERS, AdapterSet
from edgekit_server.engine.diskcache import DiskCache
from edgekit_server.engine.hostcache import HostCache

STAGING_BYTES = 512 * 2**20
"""Host RAM of a disk cache that has no host cache in front of it."""


def build(
    config: EngineConfig,
    *,
    n_ctx_seq: int,
    unified: bool,
    layout: str,
    build: str,
    adapters: AdapterSet = NO_ADAPTERS,
) -> tuple[HostCache | None, str]:
    """Return the store, or None without one, and what to say about it.

    `layout`: how attention was set up (it decides the order of V in memory); `build`: version
    of llama.cpp. Both are part of what a file on disk has to fit, and so are `adapters`, those of
    a request that names none.
    """
    if config.host_cache_bytes <= 0 and config.disk_cache is None:
        return None, "none: what loses its place in KV memory is computed again"
    budget = config.host_cache_bytes or STAGING_BYTES
    said = f"{budget >> 20} MiB of host RAM"
    if config.disk_cache is None:
        return HostCache(budget), f"{said}, as configured"
    key = kvfile.compatibility(
        model=kvfile.model_digest(config.model_path),
        build=build,
        type_k=config.type_k,
        type_v=config.type_v,
        layout=layout,
        streams=1 if unified else config.n_seq_max,
        n_ctx_seq=n_ctx_seq,  # some models scale their positions by it
        adapters=";".join(
            f"{kvfile.model_digest(config.adapters[i].path)} {scale!r}" for i, scale in adapters
        ),
    )
    disk = DiskCache(config.disk_cache, key, _tell)
    return HostCache(
        budget, disk, on_disk=adapters
    ), f"{said}; {len(disk)} sequences found in {config.disk_cache}"


def _tell(line: str) -> None:
    sys.stderr.write(f"edgekit-server: {line}\n")
