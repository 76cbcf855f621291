"""Measured memory bandwidth: how fast all usable cores together can read main memory.

Decoding a token reads every weight once, so the speed of plain reading is its ceiling.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable, Collection
from typing import Final

from edgekit.probe.text import whole
from edgekit.units import GB, MIB

BUDGET_S: Final = 0.45
_MAX_BYTES: Final = 512 * MIB
_MIN_BYTES: Final = 256 * MIB
_PER_THREAD: Final = 16 * MIB
_MAX_THREADS: Final = 64
_ROUNDS: Final = 8

Scan = Callable[[int, int], None]


def measure(
    *,
    threads: int | None,
    available_bytes: int | None,
    cache_bytes: int | None = None,
    cpus: Collection[int] | None = None,
    budget_s: float = BUDGET_S,
) -> float | None:
    """Read bandwidth in 10^9 bytes per second, best of several rounds; None if not measurable.

    Each thread compares the two equal halves of its own buffer (the C library's memcmp: it reads
    every byte once, as two streams, with the widest loads it has, and ctypes lets go of the
    interpreter lock meanwhile). All threads start together; the figure is all their bytes over the
    time until the last is done. The buffers are filled first, since untouched pages would all be
    one page of zeros in the cache.

    With `cpus` the threads run there only, where the system can do that (one socket of several).
    A last-level cache that holds much of the buffers (512 MiB at most, an eighth of the available
    memory) would inflate the figure. Other load on the machine lowers it.
    """
    scan = _memcmp()
    size = buffer_bytes(threads, available_bytes, cache_bytes)
    if scan is None or size is None or threads is None:
        return None
    n_threads = min(threads, _MAX_THREADS)
    deadline = time.perf_counter() + budget_s
    try:
        return _best_of(scan, size // n_threads, n_threads, deadline, cpus)
    except (OSError, ValueError, MemoryError, RuntimeError):
        return None  # no memory or no threads to be had: unknown, not an error


def buffer_bytes(
    threads: int | None, available_bytes: int | None, cache_bytes: int | None
) -> int | None:
    """All threads' buffers together: beyond the cache, within reason; None if memory is short."""
    if threads is None or threads < 1 or available_bytes is None:
        return None
    wanted = max(_MIN_BYTES, _PER_THREAD * min(threads, _MAX_THREADS), 2 * (cache_bytes or 0))
    size = min(wanted, _MAX_BYTES, available_bytes // 8)
    return size if size >= 32 * MIB else None


def busy_note(load: float | None, threads: int | None) -> str | None:
    """Say so when other work kept the cores busy (load average over the last minute). Pure."""
    if load is None or threads is None or load < 0.5 * threads:
        return None
    return (
        f"memory bandwidth was measured beside other work (load {load:.1f} on {threads} cores), so "
        "it is a lower bound"
    )


def last_level_cache(texts: list[str]) -> int | None:
    """Largest of sysfs's cache sizes, "491520K" and the like, in bytes. Pure."""
    sizes = [whole(t.strip().removesuffix("K")) for t in texts if t.strip().endswith("K")]
    return max((size * 1024 for size in sizes if size is not None), default=None)


def _best_of(
    scan: Scan, share: int, n_threads: int, deadline: float, cpus: Collection[int] | None
) -> float | None:
    barrier = threading.Barrier(n_threads)
    ends = [[0.0] * n_threads for _ in range(_ROUNDS)]
    starts = [0.0] * _ROUNDS
    done = threading.Event()

    def work(me: int) -> None:
        if cpus is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(threading.get_native_id(), cpus)  # this thread, not the process
        with mmap.mmap(-1, share) as memory:
            if hasattr(memory, "madvise") and hasattr(mmap, "MADV_HUGEPAGE"):
                memory.madvise(mmap.MADV_HUGEPAGE)  # fewer page faults and TLB misses
            first = ctypes.c_char.from_buffer(memory)
            address = ctypes.addressof(first)
            ctypes.memset(address, 1, share)
            for round_ in range(_ROUNDS):
                if barrier.wait(timeout=10) == 0:
                    starts[round_] = time.perf_counter()
                    if round_ > 0 and starts[round_] > deadline:
                        done.set()
                barrier.wait(timeout=10)
                if done.is_set():
                    break
                scan(address, share)
                ends[round_][me] = time.perf_counter()
            del first  # the mapping cannot close while this points into it

    workers = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(n_threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    spans = [max(e) - s for s, e in zip(starts, ends, strict=True) if min(e) > s > 0]
    return share * n_threads / min(spans) / GB if spans else None


def _memcmp() -> Scan | None:
    """The C library's memcmp over two halves as scan(address, n_bytes); None if not to be had."""
    try:
        library = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None)
        memcmp = library.memcmp
    except (OSError, AttributeError):
        return None
    memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]

    def scan(address: int, n_bytes: int) -> None:
        memcmp(address, address + n_bytes // 2, n_bytes // 2)

    return scan
