"""Importance matrices: how strongly a text drives each input of each weight.

For every column of a weight, the sum of squares of the activations it was multiplied with, over
a calibration text, for each expert by itself. A quantizer then spends its rounding error where
the model looks least. Sums are float64 in the order of the rows, so that they do not depend on
how many threads ran the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit_quantize.errors import BadCheckpointError
from edgekit_quantize.windows import WINDOW, cut, run

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgekit_quantize.products import Product

    Sums = npt.NDArray[np.float64]

ROWS_AT_ONCE = 64
"""Rows squared at a time: 64 rows of the widest weight known, 53,248 columns, are 27 MB."""


@dataclass(slots=True)
class Gathered:
    """One weight's sums of squares [matrices, columns], and the rows summed for each count."""

    sums: Sums
    counts: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Imatrix:
    """What was collected: by tensor name, over `chunks` windows of `chunk_size` tokens."""

    entries: Mapping[str, Gathered]
    chunks: int
    chunk_size: int

    @property
    def partial(self) -> dict[str, int]:
        """Experts that the text never reached, by tensor: their entries carry no information."""
        missed = {name: int((e.counts == 0).sum()) for name, e in self.entries.items()}
        return {name: count for name, count in missed.items() if count}


class Collector:
    """Adds up products as the graph computes them."""

    def __init__(self) -> None:
        self.entries: dict[str, Gathered] = {}
        # Query, key and value share their input, and so do gate and up: it is summed once.
        self._last: tuple[int, Sums] | None = None

    def begin(self) -> None:
        """Start another graph: an address of the last one may mean something else now."""
        self._last = None

    def add(self, product: Product) -> None:
        """Add one product. Raises BadCheckpointError (`not_finite`) for NaN or infinity."""
        if product.experts is None:
            sums, counts = self._dense(product)
        else:
            sums, counts = _by_expert(product)
        import numpy as np

        if not np.isfinite(sums).all():
            raise BadCheckpointError(
                f"the activations before {product.weight} are not finite",
                code="not_finite",
                hint="the model's weights are damaged; fetch or convert it again",
            )
        entry = self.entries.get(product.weight)
        if entry is None:
            self.entries[product.weight] = Gathered(sums.copy(), counts)
        else:
            entry.sums += sums
            entry.counts += counts

    def _dense(self, product: Product) -> tuple[Sums, npt.NDArray[np.int64]]:
        import numpy as np

        outer, rows, columns = product.inputs.shape
        n = product.n_matrices
        if self._last is not None and self._last[0] == product.key:
            sums = self._last[1]
        else:
            sums = np.zeros((n, columns))
            for i in range(outer):
                sums[i % n] += _squares(product.inputs[i])
            self._last = (product.key, sums)
        return sums, np.array([outer * rows // n])


def _by_expert(product: Product) -> tuple[Sums, npt.NDArray[np.int64]]:
    import numpy as np

    assert product.experts is not None
    _, slots, columns = product.inputs.shape
    sums = np.zeros((product.n_matrices, columns))
    counts = np.zeros(product.n_matrices, np.int64)
    for slot in range(product.experts.shape[1]):
        inputs = product.inputs[:, slot % slots]
        chosen = product.experts[:, slot]
        for expert in np.unique(chosen):
            rows = inputs[chosen == expert]
            sums[expert] += _squares(rows)
            counts[expert] += len(rows)
    return sums, counts


def _squares(rows: npt.NDArray[np.float32]) -> Sums:
    """Return the sum of squares of each column, in float64."""
    import numpy as np

    total = np.zeros(rows.shape[1])
    for at in range(0, len(rows), ROWS_AT_ONCE):
        total += np.square(rows[at : at + ROWS_AT_ONCE], dtype=np.float64).sum(axis=0)
    return total


def collect(
    model: Path,
    text: str,
    *,
    threads: int,
    chunks: int | None = None,
    chunk_size: int = WINDOW,
    use_extra_bufts: bool = True,
    n_gpu_layers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Imatrix:
    """Run the text through a GGUF and return what its weights were multiplied with.

    `chunks`: how many windows, all by default. The head and the embeddings are left out: no
    recipe uses an importance for them. To be called in a child process.

    Raises EngineFailedError (the model does not load or run), BadCheckpointError (`not_finite`,
    `text_too_short`).
    """
    from edgekit_quantize.llama import Runner, RunSettings

    collector = Collector()
    settings = RunSettings(
        n_ctx=chunk_size,
        n_batch=chunk_size,
        threads=threads,
        use_extra_bufts=use_extra_bufts,
        n_gpu_layers=n_gpu_layers,
    )
    with Runner(model, settings, collector.add) as runner:
        windows = cut(runner.tokenize(text), runner.first, chunk_size, chunks)
        # Every position's logits are asked for, or the last block computes only some rows.
        for _ in run(runner, windows, range(chunk_size), progress):
            collector.begin()
    return Imatrix(dict(sorted(collector.entries.items())), len(windows.ids), chunk_size)
