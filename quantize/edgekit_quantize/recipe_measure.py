"""How much each tensor loses in each type: rounding errors measured, turned into divergence.

The error of a tensor is relative: the weighted mean square of what quantizing changes over that
of the weights, on rows spread over the tensor; the weights are the importance of each column
where it is known. A divergence grows in proportion to it. By how much depends on the role of the
tensor, and was measured once, by quantizing one group of tensors after another and looking at the
mean KL divergence. `GAINS` is what that gave for the embedded model; no other was measured, and
nothing here measures it anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit_quantize.architectures import TensorSpec
from edgekit_quantize.checkpoint import Checkpoint
from edgekit_quantize.recipe_rules import role
from edgekit_quantize.recipe_search import CANDIDATES, candidate_types, searchable
from edgekit_quantize.tensor_types import FILE_TYPES, TENSOR_TYPES, row_bytes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgekit_quantize.imatrix_file import ImatrixFile, Importance
    from edgekit_quantize.llama import Ggml

    Floats = npt.NDArray[np.float32]

VALUES = 1 << 17
"""Values of a tensor that are quantized for the measure; all of a small one."""
RUNS = 16
"""Runs of rows, spread evenly, that they come from."""

Errors = dict[str, dict[str, float]]
"""Relative error by tensor and type."""

GAINS: Mapping[str, float] = {
    "output": 1.76,
    "embedding": 0.396,
    "attn_v": 0.204,
    "attn_output": 0.168,
    "ffn_down": 0.113,
    "ffn_gate": 0.090,
    "ffn_up": 0.073,
    "attn_k": 0.052,
    "attn_q": 0.051,
    "other": 0.1,
}
"""Nats of mean KL divergence for a relative error of 1 in one tensor of the role.

Measured on the embedded model of GAINS_LAYERS layers over its evaluation text, with the role
alone in Q3_K and in Q4_K: both give the same gain within 5 %, so the divergence is indeed in
proportion to the error. `other` is a guess between its neighbours, for roles the model lacks.
"""
GAINS_LAYERS = 6
"""In a model of more layers each one changes less of the sum: gains are shared out among them."""


def measure(
    source: Path,
    imatrix: ImatrixFile | None = None,
    *,
    candidates: Sequence[str] = CANDIDATES,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Errors:
    """Return the relative error of every free tensor of a checkpoint in every candidate type.

    `progress(done, total)` counts tensors. Raises what planning a conversion raises.
    """
    from edgekit_quantize.convert import make_job
    from edgekit_quantize.fidelity import job_reader
    from edgekit_quantize.llama import Ggml
    from edgekit_quantize.planning import plan_conversion

    ggml = Ggml()
    found: Errors = {}
    with Checkpoint(source) as checkpoint:
        plan = plan_conversion(checkpoint, FILE_TYPES["F32"])
        free = {spec.name for spec in searchable([s.spec for s in plan.sources])}
        pairs = [
            pair for pair in zip(plan.sources, plan.tensors, strict=True) if pair[1].name in free
        ]
        kinds = {name for source_, _ in pairs for name in candidate_types(source_.spec, candidates)}
        for name in kinds:
            ggml.prepare(TENSOR_TYPES[name])
        weights = {} if imatrix is None else imatrix.tensors

        def one(number: int) -> dict[str, float]:
            made_of, tensor = pairs[number]
            read = job_reader(make_job(checkpoint, made_of, tensor), ggml)
            entry = weights.get(tensor.name)
            return _errors(made_of.spec, read, entry, ggml, candidates)

        with ThreadPoolExecutor(threads) as pool:
            for number, errors in enumerate(pool.map(one, range(len(pairs)))):
                found[pairs[number][1].name] = errors
                if progress is not None:
                    progress(number + 1, len(pairs))
    return found


def expected_losses(
    errors: Errors, n_layer: int, gains: Mapping[str, float] | None = None
) -> Errors:
    """Turn errors into expected divergences.

    `gains` are nats by role, as GAINS, or by the tensor's own name, which counts first; those
    given are taken as they are, GAINS are shared out among `n_layer` layers.
    """

    def gain(name: str) -> float:
        if gains is not None:
            return gains[name] if name in gains else gains[role(name)]
        share = GAINS_LAYERS / n_layer if name.startswith("blk.") else 1.0
        return GAINS[role(name)] * share

    return {name: {k: gain(name) * e for k, e in kinds.items()} for name, kinds in errors.items()}


def _errors(
    spec: TensorSpec,
    read: Callable[[int, int], Floats],
    importance: Importance | None,
    ggml: Ggml,
    candidates: Sequence[str],
) -> dict[str, float]:
    import numpy as np

    columns = spec.shape[0]
    per_matrix = spec.shape[1]
    wrong = dict.fromkeys(candidate_types(spec, candidates), 0.0)
    there = 0.0
    for first, last in _rows(spec):
        values = read(first, last)
        weights = None
        if importance is not None:
            weights = importance.matrix(first // per_matrix, columns)
        scale = np.ones(columns) if weights is None else weights.astype(np.float64)
        there += float((np.square(values, dtype=np.float64) @ scale).sum())
        for name in wrong:
            kind = TENSOR_TYPES[name]
            raw = np.empty(len(values) * row_bytes(kind, columns), np.uint8)
            ggml.quantize(kind, values, raw, weights)
            back = np.empty_like(values)
            ggml.dequantize(kind, raw, back)
            back -= values
            wrong[name] += float((np.square(back, dtype=np.float64) @ scale).sum())
    return {name: error / there if there else 0.0 for name, error in wrong.items()}


def _rows(spec: TensorSpec) -> Iterator[tuple[int, int]]:
    """Give runs of rows, none across two matrices, of about VALUES values together."""
    per_matrix = spec.shape[1]
    rows = per_matrix * (spec.shape[2] if len(spec.shape) > 2 else 1)
    if rows * spec.shape[0] <= VALUES:
        yield from ((at, min(at + per_matrix, rows)) for at in range(0, rows, per_matrix))
        return
    length = max(1, VALUES // RUNS // spec.shape[0])
    for i in range(RUNS):
        first = i * rows // RUNS
        edge = (first // per_matrix + 1) * per_matrix
        yield first, min(first + length, edge, rows)
