"""Measure what a file lost against the unquantized model it was made from.

`score_base` runs the unquantized model once over a text and over the canary prompts, and stores
what it predicts; `evaluate` runs another file over the same and compares. Both load models into
this process, which llama.cpp may end: call them in a child.

The same file, base and settings give the same figures to the last bit, whatever the number of
threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit_quantize import answers as canary
from edgekit_quantize.answers import Drift, Piece
from edgekit_quantize.base_file import BaseFile, BaseHeader, write_base
from edgekit_quantize.checkpoint import Checkpoint
from edgekit_quantize.errors import BadCheckpointError
from edgekit_quantize.provenance import CONVERTER
from edgekit_quantize.windows import WINDOW, Windows, cut, run

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgekit_quantize.divergence import Divergence, Rows
    from edgekit_quantize.llama import Runner

CANARY_CELLS = 4096
"""Context for the canary prompts; those that do not fit together take turns."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Material:
    """What a model is tried on. `limit`: how many windows of the text, all by default."""

    text: str
    prompts: tuple[tuple[Piece, ...], ...] = ()
    window: int = WINDOW
    limit: int | None = None

    @property
    def text_digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Engine:
    """How the model is run."""

    threads: int = 1
    use_extra_bufts: bool = True
    n_gpu_layers: int = 0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was found: the divergence, and which of the canary prompts are answered otherwise."""

    divergence: Divergence
    prompts: int
    drifts: tuple[Drift, ...]

    @property
    def unchanged(self) -> int:
        return self.prompts - len(self.drifts)


def score_base(
    model: Path,
    base: Path,
    material: Material,
    engine: Engine,
    progress: Progress | None = None,
) -> BaseHeader:
    """Run the unquantized GGUF `model` over the material and store what it says in `base`.

    Raises EngineFailedError, BadCheckpointError (`not_finite`, `text_too_short`), and what
    writing a file raises.
    """
    from edgekit_quantize.divergence import pack

    with _runner(model, material, engine) as (runner, windows, prompts):
        said = canary.answer(runner, prompts) if prompts else []
        scored = _scored(windows)
        header = BaseHeader(
            n_vocab=runner.n_vocab,
            window=windows.size,
            windows=len(windows.ids),
            scored=len(scored),
            tokens=windows.digest,
            text=material.text_digest,
            prompts=canary.digest(material.prompts),
            answers=tuple(map(tuple, said)),
            made_by=CONVERTER,
        )

        def rows() -> Iterator[npt.NDArray[np.uint16]]:
            import numpy as np

            for _, logits in run(runner, windows, scored, progress):
                if not np.isfinite(logits).all():
                    raise BadCheckpointError(
                        f"{model.name} computes no finite numbers",
                        code="not_finite",
                        hint="the unquantized weights are damaged; fetch them again",
                    )
                yield pack(logits)

        write_base(base, header, rows())
    return header


def evaluate(
    model: Path,
    base: Path,
    material: Material,
    engine: Engine,
    progress: Progress | None = None,
) -> Evaluation:
    """Compare the GGUF `model` with a stored base over the same material.

    Figures may be NaN where the model computes none. Raises EngineFailedError, and
    BadCheckpointError: `bad_base`, `other_material` (the base is of another text or other
    prompts), `other_vocabulary`.
    """
    from edgekit_quantize.divergence import joined, summarize

    stored = BaseFile(base)
    header = stored.header
    _check_material(header, material)
    material = replace(material, window=header.window, limit=header.windows)
    with _runner(model, material, engine) as (runner, windows, prompts):
        if (header.n_vocab, header.tokens) != (runner.n_vocab, windows.digest):
            raise BadCheckpointError(
                f"{model.name} and its base cut the text into other tokens",
                code="other_vocabulary",
                hint="compare a file with the model that it was made from",
            )
        said = canary.answer(runner, prompts) if prompts else []
        drifts = canary.drifts(runner, header.answers, said)
        parts: list[Rows] = []
        logits = run(runner, windows, _scored(windows), progress)
        for (ids, rows), words in zip(logits, stored.windows(), strict=True):
            parts.append(_compared(words, rows, ids))
    return Evaluation(summarize(joined(parts)), len(prompts), tuple(drifts))


def _compared(
    words: npt.NDArray[np.uint16], logits: npt.NDArray[np.float32], ids: Sequence[int]
) -> Rows:
    import numpy as np

    from edgekit_quantize.divergence import compare_rows

    return compare_rows(words, logits, np.array(ids[len(ids) - len(words) :], np.int64))


def _scored(windows: Windows) -> range:
    """Positions whose prediction counts: those with at least half a window before them."""
    return range(windows.size // 2 - 1, windows.size - 1)


@contextmanager
def _runner(
    model: Path, material: Material, engine: Engine
) -> Iterator[tuple[Runner, Windows, list[list[int]]]]:
    """Load a model with room for the windows and for all prompts at once."""
    from edgekit_quantize.llama import Runner, RunSettings

    n_prompts = len(material.prompts)
    together = max(1, WINDOW // material.window)
    settings = RunSettings(
        n_ctx=max(together * material.window, CANARY_CELLS if n_prompts else 0),
        n_seq=max(1, together, n_prompts),
        n_batch=together * material.window,
        threads=engine.threads,
        use_extra_bufts=engine.use_extra_bufts,
        n_gpu_layers=engine.n_gpu_layers,
    )
    with Runner(model, settings) as runner:
        windows = cut(runner.tokenize(material.text), runner.first, material.window, material.limit)
        prompts = canary.tokenize(runner, material.prompts)
        yield runner, windows, prompts


def _check_material(header: BaseHeader, material: Material) -> None:
    if header.text != material.text_digest:
        raise _other("text")
    if header.prompts != canary.digest(material.prompts):
        raise _other("set of canary prompts")


def _other(what: str) -> BadCheckpointError:
    return BadCheckpointError(
        f"the stored base was made over another {what}",
        code="other_material",
        hint="pass the same --text, or make the base again",
    )


def float_type(folder: Path) -> str:
    """Return the file type that holds a checkpoint's own values: BF16 unless it is finer.

    FP8 and MXFP4 weights are exact in BF16 but for their scales, which round to 8 bits.
    Raises what opening a checkpoint raises.
    """
    with Checkpoint(folder) as checkpoint:
        names = checkpoint.scales.names
        dtypes = {t.dtype for t in map(checkpoint.tensor, names) if len(t.shape) > 1}
    return "F32" if "F32" in dtypes else "F16" if dtypes == {"F16"} else "BF16"
