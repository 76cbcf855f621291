"""Ask NVML and print what it says, one JSON object per line. Runs in a child process.

A driver can hang, crash or lie, so this never runs inside edgekit itself, imports nothing of it,
and prints each device as soon as it is known: what was learned before a crash is kept.

Lines: {"driver": str|null, "count": int}, then one {"index", "mig_instance", ...} per device or
MIG instance, then {"done": true}. A failure of the whole is {"error": str, "missing": bool}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TypeVar

import pynvml

T = TypeVar("T")


def main() -> int:
    """Print all devices; 0 also when there are none, since that is an answer."""
    try:
        pynvml.nvmlInit()
        count = int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError as error:
        missing = isinstance(error, pynvml.NVMLError_LibraryNotFound)
        _say({"error": str(error), "missing": missing})
        return 0
    _say({"driver": _try(pynvml.nvmlSystemGetDriverVersion), "count": count})
    for index in range(count):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        except pynvml.NVMLError as error:
            _say({"index": index, "error": str(error)})
            continue
        _device(index, handle)
    _say({"done": True})
    return 0


def _device(index: int, handle: object) -> None:
    capability = _try(lambda: pynvml.nvmlDeviceGetCudaComputeCapability(handle))
    ecc = _try(lambda: pynvml.nvmlDeviceGetEccMode(handle)[0])
    mig = _try(lambda: pynvml.nvmlDeviceGetMigMode(handle)[0])
    shared = {
        "index": index,
        "compute_capability": None if capability is None else list(capability),
        "ecc": None if ecc is None else bool(ecc),
        "mig_mode": None if mig is None else bool(mig),
    }
    _say({**shared, "mig_instance": None, **_identity(handle)})
    if not mig:
        return
    for instance in range(_try(lambda: pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)) or 0):
        try:
            slice_handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, instance)
        except pynvml.NVMLError:
            continue  # an empty place: instances need not be numbered without gaps
        place = {"mig_instance": instance, "cores": _cores(slice_handle)}
        _say({**shared, **place, **_identity(slice_handle)})


def _cores(slice_handle: object) -> int | None:
    """Multiprocessors of a MIG instance; NVML tells them for instances only."""
    return _try(lambda: pynvml.nvmlDeviceGetAttributes(slice_handle).multiprocessorCount)


def _identity(handle: object) -> dict[str, object]:
    facts: dict[str, object] = {
        "name": _try(lambda: pynvml.nvmlDeviceGetName(handle)),
        "uuid": _try(lambda: pynvml.nvmlDeviceGetUUID(handle)),
    }
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    except pynvml.NVMLError as error:
        not_supported = isinstance(error, pynvml.NVMLError_NotSupported)
        return {**facts, "memory": "not_supported" if not_supported else str(error)}
    return {**facts, "memory": {"total": int(memory.total), "free": int(memory.free)}}


def _try(question: Callable[[], T]) -> T | None:
    """One answer, or None if the driver will not say."""
    try:
        return question()
    except pynvml.NVMLError:
        return None


def _say(record: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
