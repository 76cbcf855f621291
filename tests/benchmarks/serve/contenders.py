"""The servers that compete, and how each says the same settings.

A contender's name is its kind, then options after a colon, separated by commas:

- `edgekit`                   `edgekit:speculation=off` sets fields of EngineConfig
- `llama-server`              unified KV as ours; `llama-server:streams` what it does by itself
                              with -np given; NAME=VALUE sets an environment variable
- `llama_cpp.server`
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.serve.settings import Options, Setup


@dataclass(frozen=True, slots=True)
class Contender:
    """One way of serving; `program` is None when it was not found."""

    name: str
    kind: str
    given: Mapping[str, str]
    """Options by name; a bare word has the value ""."""
    program: Path | None
    health: str = "/health"
    env: Mapping[str, str] = field(default_factory=dict)

    def command(self, setup: Setup, port: int, *, verbose: bool = False) -> list[str]:
        """Return the command line. `verbose`: say buffer sizes in the log (slower)."""
        assert self.program is not None, self.name
        if self.kind == "edgekit":
            return _edgekit(self, setup, port)
        if self.kind == "llama-server":
            return _llama_server(self, setup, port, verbose=verbose)
        return _llama_cpp(self, setup, port)


def contender(name: str, options: Options) -> Contender:
    """Return the contender of that name. ValueError for a kind or an option that is none."""
    kind, _, rest = name.partition(":")
    given = dict(part.partition("=")[::2] for part in rest.split(",") if part)
    if kind == "edgekit":
        return Contender(name, kind, given, Path(sys.executable))
    if kind == "llama-server":
        env = {key: value for key, value in given.items() if value}
        if unknown := given.keys() - env.keys() - {"streams"}:
            raise ValueError(f"{name}: {', '.join(sorted(unknown))} is no option of llama-server")
        return Contender(name, kind, given, options.llama_server, env=env)
    if kind == "llama_cpp.server" and not given:
        return Contender(name, kind, given, options.llama_cpp_python, health="/v1/models")
    raise ValueError(f"{name!r} is no server this benchmark knows")


def _edgekit(self: Contender, setup: Setup, port: int) -> list[str]:
    engine: dict[str, object] = {
        "n_ctx": setup.n_ctx,
        "n_seq_max": setup.n_seq,
        "n_batch": setup.n_batch,
        "n_ubatch": setup.n_ubatch,
        "n_threads": setup.n_threads,
    }
    engine |= {name: _value(text) for name, text in self.given.items()}
    arguments = json.dumps({"model": str(setup.model), "port": port, "engine": engine})
    return [str(self.program), "-m", "tests.benchmarks.serve.ours", arguments]


def _llama_server(self: Contender, setup: Setup, port: int, *, verbose: bool) -> list[str]:
    # All other flags at their defaults, which are those of our engine: flash attention auto,
    # f16 KV; and its own: warm-up, prompt cache in RAM, idle slots saved to it.
    return [
        str(self.program), "-m", str(setup.model), "--host", "127.0.0.1", "--port", str(port),
        "-c", str(setup.n_ctx), "-np", str(setup.n_seq),
        "-t", str(setup.n_threads), "-tb", str(setup.n_threads),
        "-b", str(setup.n_batch), "-ub", str(setup.n_ubatch),
        "-no-kvu" if "streams" in self.given else "-kvu",
        *(("-lv", "4") if verbose else ()),
    ]  # fmt: skip


def _llama_cpp(self: Contender, setup: Setup, port: int) -> list[str]:
    # It has one sequence. Logits of every position would need n_ctx x n_vocab floats of memory,
    # and a second request would interrupt the first one's stream: both are switched off.
    return [
        str(self.program), "-m", "llama_cpp.server", "--model", str(setup.model),
        "--host", "127.0.0.1", "--port", str(port),
        "--n_ctx", str(setup.longest), "--n_batch", str(setup.n_batch),
        "--n_ubatch", str(setup.n_ubatch), "--n_threads", str(setup.n_threads),
        "--n_threads_batch", str(setup.n_threads), "--logits_all", "false",
        "--interrupt_requests", "false", "--verbose", "false",
    ]  # fmt: skip


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text
