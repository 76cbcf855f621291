"""The child that runs models to judge them: `python -m edgekit.evaluate_child`.

One request, JSON lines back. llama.cpp ends the process on much that is wrong, so it runs here.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

# llama.cpp reads these when it is loaded: an abort would fork a debugger, and idle threads spin.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

from edgekit import child, material
from edgekit.errors import from_foreign
from edgekit.quality import Divergence, Drift, Quality, WrongTensor, to_json

if TYPE_CHECKING:
    from edgekit_quantize.evaluate import Engine, Evaluation, Material
    from edgekit_quantize.fidelity import Fidelity

REPORT_EVERY_S: Final = 0.1
SHARES: Final = {"weights": (0, 10), "convert": (10, 20), "base": (20, 60), "file": (60, 100)}
"""Where each stage begins and ends, in percent of the whole."""

Progress = Callable[[int, int], None]


def main() -> int:
    """Do as asked; the last answer is `quality`, `base`, `imatrix` or `error`."""
    signal.signal(signal.SIGTERM, _stop)
    request = child.read_request()
    actions = {"evaluate": _evaluate, "imatrix": _imatrix}
    try:
        with _place(Path(str(request["work"]))) as work:
            child.answer(actions[str(request["do"])](request, work))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        mapped = from_foreign(error)
        child.answer_error(mapped)
        return mapped.exit_code
    return 0


@contextmanager
def _place(folder: Path) -> Iterator[Path]:
    """Give a folder of one's own, with the lock by which `store gc` knows that it is in use."""
    from filelock import FileLock

    name = f"base-{os.getpid()}-{os.urandom(4).hex()}"
    lock = folder / f"{name}.lock"
    with FileLock(lock):
        (folder / name).mkdir()
        try:
            yield folder / name
        finally:
            shutil.rmtree(folder / name, ignore_errors=True)
    lock.unlink(missing_ok=True)


def _evaluate(request: Mapping[str, Any], work: Path) -> dict[str, object]:
    from edgekit_quantize.evaluate import Material
    from edgekit_quantize.fidelity import compare_weights
    from edgekit_quantize.gguf_header import read_header

    started = time.monotonic()
    file, source = Path(request["file"]), Path(request["source"]) if request["source"] else None
    wanted = request["prompts"]
    prompts, how = material.rendered(wanted, read_header(file)) if wanted else ((), "")
    text = Path(request["text"]).read_text(encoding="utf-8")
    tried = Material(text, prompts, request["window"], request["windows"])
    weights = compare_weights(file, source, _progress("weights")) if source else []
    found = _compare(request, file, source, tried, work) if request["run"] else None
    drifts = found.drifts if found else ()
    quality = Quality(
        file_sha256=request["sha256"],
        material=request["material"],
        divergence=None if found is None else _divergence(found),
        prompts=found.prompts if found else 0,
        drifts=tuple(Drift(wanted[d.prompt], d.at, d.before, d.after) for d in drifts),
        tensors=len(weights),
        wrong=tuple(_wrong(w) for w in weights if not w.good),
        base=request["base_name"],
        note=request["note"],
        seconds=round(time.monotonic() - started, 3),
        reasons=(how,) if how else (),
    )
    return {"quality": to_json(quality)}


def _compare(
    request: Mapping[str, Any], file: Path, source: Path | None, tried: Material, work: Path
) -> Evaluation:
    """Run the base, unless what it says is stored already, then the file."""
    from edgekit_quantize.evaluate import evaluate, score_base

    base = Path(request["base"]) if request["base"] else work / "stored.base"
    engine = _engine(request, request["n_gpu_layers"])
    if not base.is_file():
        assert source is not None
        base.parent.mkdir(parents=True, exist_ok=True)
        # The unquantized model need not fit where the quantized one does: host memory takes it.
        score_base(_as_gguf(source, work), base, tried, _engine(request, 0), _progress("base"))
    return evaluate(file, base, tried, engine, _progress("file"))


def _as_gguf(source: Path, work: Path) -> Path:
    """Return the unquantized model as a GGUF, converted for the moment if it is a checkpoint."""
    if source.is_file():
        return source
    from edgekit_quantize import convert
    from edgekit_quantize.evaluate import float_type

    made = work / "base.gguf"
    convert(source, made, float_type(source), progress=_progress("convert"))
    return made


def _imatrix(request: Mapping[str, Any], work: Path) -> dict[str, object]:
    from edgekit_quantize.imatrix import collect
    from edgekit_quantize.imatrix_file import write_imatrix

    text = Path(request["text"]).read_text(encoding="utf-8")
    found = collect(
        _as_gguf(Path(request["source"]), work),
        text,
        threads=request["threads"],
        chunks=request["chunks"],
        use_extra_bufts=request["use_extra_bufts"],
        progress=_progress("file"),
    )
    output = Path(request["output"])
    write_imatrix(
        output, found.entries, found.chunks, request["dataset"], chunk_size=found.chunk_size
    )
    return {
        "imatrix": {
            "path": str(output),
            "tensors": len(found.entries),
            "chunks": found.chunks,
            "chunk_size": found.chunk_size,
            "experts_missed": found.partial,
        }
    }


def _engine(request: Mapping[str, Any], n_gpu_layers: int) -> Engine:
    from edgekit_quantize.evaluate import Engine

    return Engine(request["threads"], request["use_extra_bufts"], n_gpu_layers)


def _divergence(found: Evaluation) -> Divergence:
    return Divergence(**{k: _finite(v) for k, v in asdict(found.divergence).items()})


def _wrong(found: Fidelity) -> WrongTensor:
    whole = found.error > found.limit or math.isnan(found.error)
    error, limit = (found.error, found.limit) if whole else (found.row, found.row_limit)
    return WrongTensor(found.name, found.type, _finite(error), limit)


def _finite(value: Any) -> Any:
    return value if math.isfinite(value) else None


def _progress(stage: str) -> Progress:
    begin, end = SHARES[stage]
    last = 0.0

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= REPORT_EVERY_S or done == total:
            last = now
            child.answer({"done": begin * total + (end - begin) * done, "total": 100 * total})

    return report


def _stop(number: int, _frame: FrameType | None) -> None:
    # The parent asks twice, by the pipe and by the signal; the second must not break the tidying.
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
