"""What to run, from the environment; and what every server of a scenario is started with."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit import paths
from edgekit_server.engine.threads import default_threads

QUICK_PAIRS, PAIRS = 1, 5


@dataclass(frozen=True, slots=True)
class Options:
    """All EDGEKIT_BENCH_ variables; see the README."""

    scenarios: tuple[str, ...]
    """Names or beginnings of names; empty: all."""
    n_pairs: int
    quick: bool
    n_threads: int
    servers: tuple[str, ...]
    """Instead of a scenario's own; empty: its own."""
    llama_server: Path | None
    llama_cpp_python: Path | None
    """An interpreter that has llama-cpp-python with its server."""
    cache: Path
    """Where the models are kept and the results go."""

    def wants(self, scenario: str) -> bool:
        """Whether a scenario was asked for."""
        return not self.scenarios or any(
            scenario == name or scenario.startswith(f"{name}-") for name in self.scenarios
        )


def options(environment: Mapping[str, str], which: Mapping[str, str | None]) -> Options:
    """Read the variables. `which`: programs found on the path.

    ValueError names the variable that makes no sense.
    """
    quick = environment.get("EDGEKIT_BENCH_QUICK", "0") not in ("", "0")
    found = environment.get("EDGEKIT_BENCH_LLAMA_SERVER") or which.get("llama-server")
    python = environment.get("EDGEKIT_BENCH_LLAMA_CPP_PYTHON")
    return Options(
        scenarios=_names(environment.get("EDGEKIT_BENCH_SCENARIOS", "")),
        n_pairs=_count(environment, "EDGEKIT_BENCH_PAIRS", QUICK_PAIRS if quick else PAIRS),
        quick=quick,
        n_threads=_count(environment, "EDGEKIT_BENCH_THREADS", default_threads()[0]),
        servers=_names(environment.get("EDGEKIT_BENCH_SERVERS", "")),
        llama_server=Path(found) if found else None,
        llama_cpp_python=Path(python) if python else None,
        cache=Path(environment.get("EDGEKIT_BENCH_CACHE") or paths.cache_dir() / "bench-serve"),
    )


@dataclass(frozen=True, slots=True)
class Setup:
    """The same for every server of a scenario; each contender says it in its own flags."""

    model: Path
    n_seq: int
    longest: int
    """Most tokens of one sequence, prompt and answer."""
    n_threads: int
    n_batch: int = 2048
    n_ubatch: int = 512

    @property
    def n_ctx(self) -> int:
        """Cells of all sequences together: room for the longest in each, as streams need it."""
        return self.n_seq * (-(-self.longest // 256) * 256)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _count(environment: Mapping[str, str], variable: str, default: int) -> int:
    text = environment.get(variable) or str(default)
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{variable} is {text!r}; it must be a number from 1 on")
    return int(text)


def program_path(names: Sequence[str]) -> dict[str, str | None]:
    """Return where these programs are on the path."""
    import shutil

    return {name: shutil.which(name) for name in names}


def from_environment() -> Options:
    """Return the options of this process."""
    return options(os.environ, program_path(["llama-server"]))
