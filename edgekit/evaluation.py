"""Prove a quantized file against the model it was made from, in a child, and keep the record."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from edgekit import child, paths
from edgekit.errors import EdgekitError, EngineFailedError, from_os
from edgekit.material import Trial
from edgekit.quality import Quality, from_json, to_json

BASE_MAGIC: Final = b"edgekit.base/1"
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Setting:
    """How the engine runs here: what the canary survived, layers on an accelerator, threads.

    No threads given: as many as serving would take. The figures do not depend on it.
    """

    use_extra_bufts: bool = True
    n_gpu_layers: int = 0
    threads: int | None = None

    def as_request(self) -> dict[str, object]:
        threads = self.threads
        if threads is None:
            from edgekit_server.engine.threads import default_threads

            threads, _ = default_threads()
        return {
            "use_extra_bufts": self.use_extra_bufts,
            "n_gpu_layers": self.n_gpu_layers,
            "threads": threads,
        }


def evaluate(
    file: Path,
    base: Path,
    trial: Trial,
    setting: Setting,
    *,
    work: Path | None = None,
    file_sha256: str = "",
    run: bool = True,
    note: str | None = None,
    stored: Path | None = None,
    progress: Progress | None = None,
) -> Quality:
    """Compare the GGUF `file` with `base`: a checkpoint folder, an unquantized GGUF, or a base
    that was stored before.

    `stored` is where what the base says is kept, or taken from when it is there. `work` takes the
    unquantized GGUF of a folder while it is needed. With `run` false only weights are compared.

    Raises EdgekitError: what the child said, or EngineFailedError when it died.
    """
    ready = base.is_file() and is_stored(base)
    request: dict[str, object] = {
        "do": "evaluate",
        "file": str(file),
        "sha256": file_sha256,
        "source": None if ready else str(base),
        "base": str(base if ready else stored) if ready or stored else None,
        "base_name": base.name,
        "text": str(trial.text),
        "window": trial.window,
        "windows": trial.windows,
        "prompts": list(trial.prompts),
        "material": trial.digest,
        "run": run,
        "note": note,
        "work": str(work or tempfile.gettempdir()),
        **setting.as_request(),
    }
    answer = _ask(request, progress).get("quality")
    quality = from_json(answer)
    if quality is None:
        raise EngineFailedError("the evaluation gave no result", code="internal")
    return quality


def imatrix(
    source: Path,
    output: Path,
    *,
    text: Path,
    dataset: str,
    chunks: int | None,
    setting: Setting,
    work: Path | None = None,
    progress: Progress | None = None,
) -> Mapping[str, object]:
    """Collect an importance matrix from a GGUF or a checkpoint folder; return what was written.

    Raises what `evaluate` raises.
    """
    request: dict[str, object] = {
        "do": "imatrix",
        "source": str(source),
        "output": str(output),
        "text": str(text),
        "dataset": dataset,
        "chunks": chunks,
        "work": str(work or tempfile.gettempdir()),
        **setting.as_request(),
    }
    found = _ask(request, progress).get("imatrix")
    return found if isinstance(found, dict) else {}


def is_stored(path: Path) -> bool:
    """Say whether a file is a stored base. Raises what reading it raises, mapped."""
    try:
        with path.open("rb") as file:
            return file.read(len(BASE_MAGIC)) == BASE_MAGIC
    except OSError as error:
        raise from_os(error) from error


def kept(root: Path, digest: str, trial: Trial) -> Quality | None:
    """Return the store's record about a file, if it is of this trial."""
    try:
        found = read_record(_record(root, digest).read_bytes())
    except (OSError, ValueError):
        return None
    same = found is not None and (found.file_sha256, found.material) == (digest, trial.digest)
    return found if same else None


def keep(root: Path, quality: Quality) -> Path:
    """Write a record beside the store's files, under the digest of the file it is about."""
    from edgekit.store import write_durably

    path = _record(root, quality.file_sha256)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os(error) from error
    record: dict[str, object] = dict(to_json(quality))
    record["check"] = _check(record)
    write_durably(path, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())
    return path


def read_record(data: bytes) -> Quality | None:
    """Read a kept record; None for one of another schema.

    Raises ValueError for one that does not agree with its own digest; earlier ones have none.
    """
    try:
        record = json.loads(data)
        check = record.pop("check", None)
    except (AttributeError, RecursionError, TypeError) as error:
        raise ValueError("no record") from error
    if check is not None and check != _check(record):
        raise ValueError("it does not agree with its own digest")
    return from_json(record)


def _check(record: Mapping[str, object]) -> str:
    return sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def stored_base(model: str, source: str, trial: Trial) -> Path:
    """Return where what an unquantized model says is kept; others of the same model are removed.

    It serves every file type of the model. 2 bytes a token of the vocabulary and position: 8 MiB
    for the embedded model, 256 MiB for a vocabulary of 131,072.
    """
    from edgekit_quantize.provenance import CONVERTER

    folder = paths.cache_dir() / "bases"
    key = sha256(repr((source, trial.digest, CONVERTER)).encode()).hexdigest()[:16]
    wanted = folder / f"{model}-{key}.base"
    for old in folder.glob(f"{model}-{'?' * 16}.base"):
        if old != wanted:
            old.unlink(missing_ok=True)
    return wanted


def _record(root: Path, digest: str) -> Path:
    return root / "evaluations" / f"{digest}.json"


def _ask(request: Mapping[str, object], progress: Progress | None) -> dict[str, Any]:
    """Run the child; return its last answer. Raises the error that it reports or died of."""
    Path(str(request["work"])).mkdir(parents=True, exist_ok=True)
    ended = child.ask("edgekit.evaluate_child", request, progress)
    if not ended.ok:
        raise _died(ended.signal)
    return ended.answer


def _died(signal: str | None) -> EdgekitError:
    if signal == "SIGKILL":
        return EngineFailedError(
            "the evaluation was killed from outside, most likely for lack of memory",
            code="evaluation_died",
            hint="free some memory, or leave the proof out with --no-verify",
        )
    return EngineFailedError(
        f"the evaluation died {f'of {signal}' if signal else 'without an answer'}",
        code="evaluation_died",
        hint="edgekit doctor says what is wrong with the engine and how to mend it",
    )
