"""Measure a plan's buffers on this machine: a child loads the file without allocating it.

The child reads only the header, builds the real graph and reports what each backend would
allocate. A file that llama.cpp cannot stand kills the child, not us.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.errors import EngineFailedError, MissingInputError
from edgekit.memory import MemoryPlan, Part

TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes by backend buffer ("CPU", "CUDA0", "CUDA_Host"), as llama.cpp would allocate them."""

    weights: Mapping[str, int]
    kv: int
    compute: Mapping[str, int]
    output: int


def dry_load(
    model_path: Path,
    *,
    n_ctx: int,
    n_seq_max: int,
    n_ubatch: int = 512,
    n_gpu_layers: int = -1,
    kv_type: str = "f16",
    use_extra_bufts: bool = True,
    flash_attn: bool | None = None,
    streams: bool = False,
    timeout_s: float = TIMEOUT_S,
) -> Measured:
    """Ask the engine what it would allocate for this file; `n_gpu_layers` -1 is all.

    `flash_attn` None leaves that to llama.cpp; `streams`: KV cells of its own for each sequence.

    Raises:
        MissingInputError: no such file.
        EngineFailedError: the child died, hung or answered nonsense.
    """
    import os
    import subprocess
    import sys

    if not model_path.is_file():
        raise MissingInputError(
            f"{model_path} is not a file", code="model_file_missing", hint="check the path"
        )
    command = [sys.executable, "-m", "edgekit_server.engine.dryload", str(model_path)]
    command += ["--n-ctx", str(n_ctx), "--n-seq-max", str(n_seq_max)]
    command += ["--n-ubatch", str(n_ubatch), "--n-gpu-layers", str(n_gpu_layers)]
    command += ["--type-k", kv_type, "--type-v", kv_type]
    if not use_extra_bufts:
        command.append("--no-extra-bufts")
    if streams:
        command.append("--streams")
    if flash_attn is not None:
        command += ["--flash-attn", "on" if flash_attn else "off"]
    # The child must find the same packages, also when they were put on the path by hand.
    environment = {
        **os.environ,
        "GGML_NO_BACKTRACE": "1",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise _failed(f"gave no answer in {timeout_s:.0f} s") from error
    if done.returncode < 0:
        raise _failed(f"died of signal {-done.returncode}")
    if done.returncode:
        raise _failed(f"ended with status {done.returncode}: {_complaint(done.stdout)}")
    return parse(done.stdout)


def _complaint(stdout: str) -> str:
    """The child's own message, from its error record."""
    import json

    try:
        return str(json.loads(stdout.strip().splitlines()[-1])["error"]["message"])
    except (ValueError, KeyError, IndexError, TypeError):
        return "no message"


def parse(text: str) -> Measured:
    """Read the child's one JSON line.

    Raises:
        EngineFailedError: it is not what the contract says.
    """
    import json

    try:
        record = json.loads(text.strip().splitlines()[-1])
        return Measured(
            weights=_by_device(record["weights_bytes"]),
            kv=int(record["kv_bytes"]),
            compute=_by_device(record["compute_bytes"]),
            output=int(record["output_bytes"]),
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise _failed("gave an answer that cannot be read") from error


def refine(plan: MemoryPlan, measured: Measured) -> MemoryPlan:
    """The plan with its formula replaced by what was measured; overheads and budgets stay."""
    main, *rest = plan.parts
    if not rest:
        whole = replace(
            main,
            weights=sum(measured.weights.values()),
            kv=measured.kv,
            compute=sum(measured.compute.values()) + measured.output,
            # The measured weights are in the CPU's own layout already.
            overhead=main.overhead - plan.packing,
        )
        return replace(plan, parts=(whole,), basis="dry load", packing=0)
    host = rest[0]
    total_kv = plan.kv or 1
    # The child reports keys and values as one sum; they lie where their layers lie.
    host_kv = measured.kv * host.kv // total_kv
    return replace(
        plan,
        parts=(
            _share(main, measured, on_host=False, kv=measured.kv - host_kv),
            _share(host, measured, on_host=True, kv=host_kv),
        ),
        basis="dry load",
    )


def _share(part: Part, measured: Measured, *, on_host: bool, kv: int) -> Part:
    def total(of: Mapping[str, int]) -> int:
        return sum(size for name, size in of.items() if _is_host(name) is on_host)

    compute = total(measured.compute) + (measured.output if on_host else 0)
    return replace(part, weights=total(measured.weights), kv=kv, compute=compute)


def _is_host(name: str) -> bool:
    return name.upper().startswith(("CPU", "AMX", "BLAS")) or name.endswith("_Host")


def _by_device(value: object) -> dict[str, int]:
    if not isinstance(value, dict):
        raise TypeError(value)
    return {str(name): int(size) for name, size in value.items()}


def _failed(what: str) -> EngineFailedError:
    return EngineFailedError(
        f"the dry load of the engine {what}",
        code="dry_load_failed",
        hint="the plan keeps its computed figures; `edgekit doctor` checks the engine",
    )
