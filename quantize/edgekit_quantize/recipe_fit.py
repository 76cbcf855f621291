"""A checkpoint and a size -> the mix of types that loses least in a file of that size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgekit_quantize.errors import BadRecipeError
from edgekit_quantize.recipe_search import Mix, search


@dataclass(frozen=True, slots=True)
class Target:
    """How large the result may be: the whole file in bytes, or its tensors in bits per weight."""

    file_bytes: int | None = None
    bits_per_weight: float | None = None


def fit_size(
    source: Path,
    target: Target,
    *,
    imatrix: Path | None = None,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Mix:
    """Measure the tensors of a checkpoint folder and return the best mix for `target`.

    `progress(done, total)` counts tensors. The mix goes to `convert` as `mix.filetype` and
    `mix.overrides`. Raises BadRecipeError (`target_too_small`, `bad_target`), and what reading
    the checkpoint and the importance matrix raises.
    """
    from edgekit_quantize.checkpoint import Checkpoint
    from edgekit_quantize.convert import header_bytes
    from edgekit_quantize.imatrix_file import read_imatrix
    from edgekit_quantize.planning import plan_conversion
    from edgekit_quantize.recipe_measure import expected_losses, measure
    from edgekit_quantize.tensor_types import FILE_TYPES

    weighing = read_imatrix(imatrix) if imatrix is not None else None
    with Checkpoint(source) as checkpoint:
        plan = plan_conversion(checkpoint, FILE_TYPES["Q8_0"], weighing)
        header = header_bytes(checkpoint, plan, FILE_TYPES["Q8_0"], weighing)
        params = plan.architecture.recipe_params(checkpoint.config)
    specs = [made_of.spec for made_of in plan.sources]
    if target.file_bytes is not None:
        budget = target.file_bytes - header
    elif target.bits_per_weight is not None and 0 < target.bits_per_weight <= 32:
        budget = int(sum(math.prod(s.shape) for s in specs) * target.bits_per_weight / 8)
    else:
        raise BadRecipeError(
            "bits per weight must be between 0 and 32",
            code="bad_target",
            hint="Q4_K_M has about 4.9 bits per weight",
        )
    errors = measure(source, weighing, threads=threads, progress=progress)
    losses = expected_losses(errors, params.n_layer)
    return search(specs, params, losses, budget, imatrix=weighing is not None)
