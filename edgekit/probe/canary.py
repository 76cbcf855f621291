"""Does the installed engine survive a few tokens on this machine, and with which setting?

The engine is tried in a child, because a bad build does not fail: it dies. Known case: built by
GCC 12 on a CPU with AMX, llama.cpp's extra buffer types crash at the first quantized matmul.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgekit.machine import Canary
from edgekit.probe.tool import ToolOutput, run_tool

MODULE: Final = "edgekit_server.engine.canary"
TIMEOUT_S: Final = 60.0
NOT_INSTALLED: Final = (
    "not tried: the engine is not installed (pip install 'edgekit[serve]' adds it)"
)
# An abort would otherwise fork a debugger, and idle OpenMP threads would spin on shared cores.
_ENV: Final = {"GGML_NO_BACKTRACE": "1", "GOMP_SPINCOUNT": "2000"}
_MEANING: Final = {
    "SIGSEGV": "it touched memory that is not its own",
    "SIGILL": "the build uses instructions that this CPU lacks",
    "SIGBUS": "it touched memory that could not be had",
    "SIGFPE": "arithmetic fault",
    "SIGABRT": "an internal check failed",
    "SIGKILL": "killed from outside, most likely for lack of memory",
}


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What a surviving canary said about the engine it ran in."""

    version: str | None = None
    backends: tuple[str, ...] | None = None
    gpu_offload: bool | None = None
    n_tokens: int = 0


def run_canary(
    model: Path,
    *,
    n_gpu_layers: int | None = None,
    timeout_s: float = TIMEOUT_S,
    command: Sequence[str] | None = None,
) -> Canary:
    """Try the engine on `model` (a GGUF) and say what survived; never raises for a dead engine.

    `command` replaces the child's command line up to the model's path. `timeout_s` holds for each
    of the two tries.
    """
    canary, _ = try_engine(model, n_gpu_layers=n_gpu_layers, timeout_s=timeout_s, command=command)
    return canary


def try_engine(
    model: Path,
    *,
    n_gpu_layers: int | None = None,
    timeout_s: float = TIMEOUT_S,
    command: Sequence[str] | None = None,
) -> tuple[Canary, EngineFacts | None]:
    """`run_canary` together with the engine's own account of itself, if one was had."""
    if command is None:
        if not _is_installed():
            return Canary(None, None, NOT_INSTALLED), None
        command = (sys.executable, "-m", MODULE)
    if not model.is_file():
        return Canary(None, None, f"not tried: there is no model file at {model}"), None
    arguments = [*command, str(model)]
    if n_gpu_layers is not None:
        arguments += ["--n-gpu-layers", str(n_gpu_layers)]
    env = {**_ENV, **_import_path()}

    first = run_tool(arguments, timeout_s=timeout_s, env=env)
    facts = parse_canary(first)
    if facts is not None:
        return Canary(True, True, f"decoded {facts.n_tokens} tokens with extra buffers on"), facts
    if first.died_of is None:
        return Canary(False, None, failure(first, timeout_s)), None

    second = run_tool([*arguments, "--no-extra-bufts"], timeout_s=timeout_s, env=env)
    facts = parse_canary(second)
    died = failure(first, timeout_s)
    if facts is None:
        again = failure(second, timeout_s)
        return Canary(False, None, f"with extra buffers {died}; without them {again}"), None
    reason = f"with extra buffers {died}; without them it decoded {facts.n_tokens} tokens"
    return Canary(True, False, reason), facts


def parse_canary(output: ToolOutput) -> EngineFacts | None:
    """The engine's account out of the child's last JSON line; None unless it says ok. Pure."""
    if not output.ok:
        return None
    for line in reversed(output.stdout.splitlines()):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if not isinstance(record, dict) or record.get("ok") is not True:
            return None
        tokens, backends = record.get("tokens"), record.get("backends")
        version, offload = record.get("version"), record.get("gpu_offload")
        return EngineFacts(
            version=version if isinstance(version, str) else None,
            backends=tuple(str(b) for b in backends) if isinstance(backends, list) else None,
            gpu_offload=offload if isinstance(offload, bool) else None,
            n_tokens=len(tokens) if isinstance(tokens, list) else 0,
        )
    return None


def failure(output: ToolOutput, timeout_s: float) -> str:
    """How a try ended, as the end of a sentence about the engine. Pure."""
    if output.missing:
        return f"the engine could not be started ({output.last_words})"
    if output.timed_out:
        return f"the engine did not finish within {timeout_s:g} s"
    if output.died_of is not None:
        meaning = _MEANING.get(output.died_of)
        return f"the engine died of {output.died_of}" + (f" ({meaning})" if meaning else "")
    if output.ok:
        return "the engine ended without a result"
    words = f": {output.last_words}" if output.last_words else ""
    return f"the engine refused with exit code {output.exit_code}{words}"


def _is_installed() -> bool:
    """Is the serve extra here? Asked without importing it, as the import itself may crash."""
    try:
        importlib.metadata.version("llama-cpp-python")
        return importlib.util.find_spec(MODULE) is not None
    except (importlib.metadata.PackageNotFoundError, ModuleNotFoundError):
        return False


def _import_path() -> dict[str, str]:
    """PYTHONPATH for the child, so that it finds the engine where this process would."""
    spec = importlib.util.find_spec("edgekit_server")
    roots = [str(Path(p).parent) for p in (spec.submodule_search_locations or ())] if spec else []
    given = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([*roots, *([given] if given else [])])} if roots else {}
