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

from edgekit.errors import MissingInputError
from edgekit.machine import Canary
from edgekit.probe.tool import ToolOutput, run_tool
from edgekit.ready_gguf import model_bytes

MODULE: Final = "edgekit_server.engine.canary"
TIMEOUT_S: Final = 60.0
# A cold model is read from disk first; a slow disk gives at least this many bytes per second.
_SLOW_DISK: Final = 50_000_000
NOT_INSTALLED: Final = (
    "not tried: the engine is not installed (pip install 'edgekit[serve]' adds it)"
)
# An abort would otherwise fork a debugger, and idle OpenMP threads would spin on shared cores.
_ENV: Final = {"GGML_NO_BACKTRACE": "1", "GOMP_SPINCOUNT": "2000"}
# Exit codes that are about the model file (bad data, missing): they say nothing of the engine.
_MODEL_REFUSED: Final = (65, 66)
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
    timeout_s: float | None = None,
    command: Sequence[str] | None = None,
) -> Canary:
    """Try the engine on `model` (a GGUF) and say what survived; never raises for a dead engine.

    `command` replaces the child's command line up to the model's path. `timeout_s` holds for each
    of the two tries; by default a minute and the time a slow disk needs to read the file.
    """
    canary, _ = try_engine(model, n_gpu_layers=n_gpu_layers, timeout_s=timeout_s, command=command)
    return canary


def try_engine(
    model: Path,
    *,
    n_gpu_layers: int | None = None,
    timeout_s: float | None = None,
    command: Sequence[str] | None = None,
    library: Path | None = None,
) -> tuple[Canary, EngineFacts | None]:
    """`run_canary` together with the engine's own account of itself, if one was had.

    `library`: a folder with a llama_cpp package to try in place of the installed one.
    """
    if command is None:
        if library is None and not installed_here():
            return Canary(None, None, NOT_INSTALLED), None
        command = (sys.executable, "-m", MODULE)
    if not model.is_file():
        return Canary(None, None, f"not tried: there is no model file at {model}"), None
    if timeout_s is None:
        try:
            timeout_s = TIMEOUT_S + model_bytes(model) / _SLOW_DISK
        except MissingInputError as error:
            return Canary(None, None, f"not tried: {error.message}"), None
    arguments = [*command, str(model)]
    if n_gpu_layers is not None:
        arguments += ["--n-gpu-layers", str(n_gpu_layers)]
    env = {**_ENV, **_import_path(library)}

    first = run_tool(arguments, timeout_s=timeout_s, env=env)
    facts = parse_canary(first)
    if facts is not None:
        return Canary(True, True, f"decoded {facts.n_tokens} tokens with extra buffers on"), facts
    if first.died_of is None:
        about_the_file = first.exit_code in _MODEL_REFUSED
        return Canary(None if about_the_file else False, None, failure(first, timeout_s)), None

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
    record = _last_object(output.stdout)
    if record.get("ok") is not True:
        return None
    tokens, backends = record.get("tokens"), record.get("backends")
    version, offload = record.get("version"), record.get("gpu_offload")
    return EngineFacts(
        version=version if isinstance(version, str) else None,
        backends=tuple(str(b) for b in backends) if isinstance(backends, list) else None,
        gpu_offload=offload if isinstance(offload, bool) else None,
        n_tokens=len(tokens) if isinstance(tokens, list) else 0,
    )


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
    error = _last_object(output.stdout).get("error")
    words = error.get("message") if isinstance(error, dict) else output.last_words
    what = (
        "the model file was refused" if output.exit_code in _MODEL_REFUSED else "the engine failed"
    )
    return f"{what} with exit code {output.exit_code}" + (f": {words}" if words else "")


def _last_object(text: str) -> dict[str, object]:
    """The last line that is JSON, if it is an object; else an empty one."""
    for line in reversed(text.splitlines()):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        return record if isinstance(record, dict) else {}
    return {}


def installed_here() -> bool:
    """Is the serve extra here? Asked without importing it, as the import itself may crash."""
    try:
        importlib.metadata.version("llama-cpp-python")
        return importlib.util.find_spec(MODULE) is not None
    except (importlib.metadata.PackageNotFoundError, ModuleNotFoundError):
        return False


def _import_path(library: Path | None = None) -> dict[str, str]:
    """PYTHONPATH for the child, so that it finds the engine where this process would."""
    spec = importlib.util.find_spec("edgekit_server")
    roots = [str(Path(p).parent) for p in (spec.submodule_search_locations or ())] if spec else []
    if library is not None:
        roots.insert(0, str(library))
    given = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([*roots, *([given] if given else [])])} if roots else {}
