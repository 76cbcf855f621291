"""What runs here and how well, as one JSON object: the page's figures, and a person's with curl."""

from __future__ import annotations

import json
import logging
import re
import time
from dataclasses import asdict
from pathlib import Path

from ..client import State
from ..errors import RequestError
from ..metrics import Metrics
from ..roles import capabilities
from ..router import Router, Served

log = logging.getLogger("edgekit_server")

SCHEMA = "edgekit.status/1"
REPORT_SCHEMA = "edgekit.bench/"
MAX_REPORT_BYTES = 1 << 20
_FILETYPE = re.compile(r" ((?:I?Q|TQ|BF|F|MXFP)\d\w*)( - (?:Small|Medium|Large))?(?: |$)")
_SIZES = {" - Small": "_S", " - Medium": "_M", " - Large": "_L"}
_BUFFER = re.compile(r"(\S+) model buffer size")


def status(router: Router, metrics: Metrics, report: str | None) -> dict[str, object]:
    """Return the object; `report` is its version. What only a loaded model knows is None before."""
    recent = metrics.recent.figures(time.monotonic())
    return {
        "schema": SCHEMA,
        "models": [describe(served) for served in router.served],
        "ttft_ms": asdict(recent.ttft_ms),
        "itl_ms": asdict(recent.itl_ms),
        "output_tok_s": recent.output_tok_s,
        "waiting": router.waiting,
        "prompt_tokens": metrics.prompt_tokens,
        "output_tokens": metrics.output_tokens,
        "report_version": report,
    }


def describe(served: Served) -> dict[str, object]:
    """Return one model and its engine child.

    `queued` are the requests beyond the sequences: at least so many wait.
    """
    hello, failure = served.hello, served.client.failure or served.failure
    n_open, notice = served.client.in_flight, served.config.notice
    return {
        "id": served.id,
        "aliases": list(served.aliases),
        "licence": notice and {"name": notice.licence, "shown": notice.shown},
        "state": state_of(served),
        "failure": None if failure is None else {"message": failure.message, "hint": failure.hint},
        "restarts": served.restarts,
        "in_flight": n_open,
        "queued": 0 if hello is None else max(0, n_open - hello.n_seq_max),
        "filetype": None if hello is None else filetype(hello.description),
        "n_ctx_seq": hello and hello.n_ctx_seq,
        "n_ctx": hello and hello.n_ctx,
        "n_ctx_train": hello and hello.n_ctx_train,
        "n_seq_max": hello and hello.n_seq_max,
        "n_params": hello and hello.n_params,
        "size_bytes": hello and hello.size_bytes,
        "architecture": hello and hello.architecture,
        "capabilities": None if hello is None else list(capabilities(hello)),
        "buffers": None if hello is None else buffers(hello.reasons.get("buffers", "")),
        "reasons": {} if hello is None else hello.reasons,
    }


def state_of(served: Served) -> str:
    """Return the engine's state, or `unloaded` for a model that waits for somebody to ask."""
    state = served.client.state
    if state is not State.FAILED and served.status == "unloaded":
        return "unloaded"
    return state.value


def filetype(description: str) -> str | None:
    """Return the file type in the engine's one line about a model: "llama 24B Q4_K - Medium"."""
    found = _FILETYPE.search(description)
    return None if found is None else found[1] + _SIZES.get(found[2] or "", "")


def buffers(text: str) -> list[str]:
    """Return where the weights lie, in the engine's names (CPU, CUDA0, ...), each once."""
    return list(dict.fromkeys(_BUFFER.findall(text)))


def report_version(path: Path | None) -> str | None:
    """Return what changes when the report does; None when there is none."""
    try:
        if path is None or not (found := path.stat()).st_size:
            return None
    except OSError:
        return None
    return f"{found.st_mtime_ns:x}-{found.st_size:x}"


def read_report(path: Path | None) -> dict[str, object]:
    """Return the report. RequestError 404 where there is none, or none that can be read."""
    if path is None:
        raise _no_report("no latency report was handed to this server")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_REPORT_BYTES + 1)
        if len(data) > MAX_REPORT_BYTES:
            raise ValueError(f"it is larger than {MAX_REPORT_BYTES} bytes")
        record = json.loads(data, parse_constant=_no_number)
    except (OSError, ValueError, RecursionError) as error:
        log.warning("the latency report %s cannot be read: %s", path, error)
        raise _no_report("the latency report cannot be read; the log says why") from error
    if not isinstance(record, dict) or not str(record.get("schema")).startswith(REPORT_SCHEMA):
        log.warning("%s is no latency report: its schema is not %s1", path, REPORT_SCHEMA)
        raise _no_report("the file handed to this server is no latency report")
    return record


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def _no_report(message: str) -> RequestError:
    return RequestError(message, status=404, code="no_report")
