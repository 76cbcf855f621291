"""The mix of tensor types that loses least within a number of bytes.

Each tensor has options: a type, its bytes, and how much it is expected to lose. Losses add up
over tensors (they are small, and errors of different matrices are independent), so the best mix
for a budget is found by climbing from the cheapest: the upgrade that gains most per byte first,
along each tensor's lower convex hull. What is left at the end goes to single upgrades that fit.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekit_quantize.architectures import RecipeParams, TensorSpec
from edgekit_quantize.errors import BadRecipeError
from edgekit_quantize.recipe import NO_OVERRIDES, Overrides, assign, quantizable
from edgekit_quantize.recipe_rules import fitting, role
from edgekit_quantize.tensor_types import (
    FILE_TYPES,
    TENSOR_TYPES,
    FileType,
    TensorType,
    align,
    tensor_bytes,
)

CANDIDATES = ("Q2_K", "Q3_K", "IQ3_S", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
"""What a tensor may become; where rows are no blocks of 256, what takes its place."""

Losses = Mapping[str, Mapping[str, float]]
"""Expected loss by tensor name and type name: mean KL divergence in nats, as far as it adds up."""


@dataclass(frozen=True, slots=True)
class Option:
    """One type a tensor may have."""

    type: str
    bytes: int
    loss: float


@dataclass(frozen=True, slots=True)
class Mix:
    """The types found: by name, for every tensor that may be quantized.

    `filetype` is the stock file type next below in bytes, under whose name the file goes.
    `stock_loss` is what that type is expected to lose, `loss` what this mix is.
    """

    filetype: str
    overrides: Overrides
    tensor_bytes: int
    loss: float
    stock_bytes: int
    stock_loss: float
    reasons: tuple[str, ...]


def candidate_types(spec: TensorSpec, candidates: Sequence[str] = CANDIDATES) -> list[str]:
    """Return the types that a tensor's row length allows, without doubles."""
    fits = [fitting(name, spec.shape[0]) for name in candidates]
    return list(dict.fromkeys(name for name in fits if name is not None))


def search(
    tensors: Sequence[TensorSpec],
    hparams: RecipeParams,
    losses: Losses,
    budget: int,
    *,
    imatrix: bool = False,
) -> Mix:
    """Return the mix of least expected loss whose data section has at most `budget` bytes.

    `losses` has an entry for each tensor that may be quantized and is not native; see
    `recipe_measure`. Where a stock file type is expected to lose no more, it is returned.

    Raises BadRecipeError (`target_too_small`) when even the smallest types do not fit.
    """
    free = [spec for spec in tensors if spec.name in losses]
    options = {spec.name: _options(spec, losses[spec.name]) for spec in free}
    fixed = sum(
        align(tensor_bytes(kind, spec.shape))
        for spec, kind in zip(tensors, assign(tensors, "Q8_0", hparams), strict=True)
        if spec.name not in losses
    )
    chosen = climb(options, budget - fixed)
    stock = _stock(tensors, hparams, losses, budget, imatrix)
    if chosen is None:
        least = fixed + sum(choices[0].bytes for choices in options.values())
        raise BadRecipeError(
            f"the smallest mix has {least} bytes of tensors, {budget} were asked for",
            code="target_too_small",
            hint="ask for more bytes, or take a smaller model",
        )
    total = fixed + sum(option.bytes for option in chosen.values())
    loss = sum(option.loss for option in chosen.values())
    file_type, stock_bytes, stock_loss = stock or (FILE_TYPES["Q2_K"], 0, float("inf"))
    if stock is not None and stock_loss <= loss:
        why = f"{file_type.name} as it is loses no more than any mix found for this size"
        return Mix(
            file_type.name, NO_OVERRIDES, stock_bytes, stock_loss, stock_bytes, stock_loss, (why,)
        )
    counts: dict[str, int] = {}
    for option in chosen.values():
        counts[option.type] = counts.get(option.type, 0) + 1
    mix = ", ".join(f"{counts[kind]} {kind}" for kind in sorted(counts))
    reasons = [f"{total} of {budget} bytes: {mix}"]
    if stock is not None:
        reasons.append(
            f"expected to lose {loss:.4g} nats, {file_type.name} with {stock_bytes} bytes "
            f"{stock_loss:.4g}"
        )
    overrides = Overrides(patterns({name: option.type for name, option in chosen.items()}))
    return Mix(file_type.name, overrides, total, loss, stock_bytes, stock_loss, tuple(reasons))


def climb(options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option] | None:
    """Choose an option for each name with the least total loss in at most `budget` bytes.

    Options of a name are sorted by bytes, each losing less than the one before. None when the
    smallest do not fit.
    """
    at = {name: choices[0] for name, choices in options.items()}
    left = budget - sum(option.bytes for option in at.values())
    if left < 0:
        return None
    # A heap of the best upgrade of each name; steps of a hull get flatter, so none is missed.
    hulls = {name: _hull(choices) for name, choices in options.items()}
    heap = [(-_slope(h[0], h[1]), name, 1) for name, h in hulls.items() if len(h) > 1]
    heapq.heapify(heap)
    while heap:
        _, name, step = heapq.heappop(heap)
        hull = hulls[name]
        extra = hull[step].bytes - at[name].bytes
        if extra > left:
            continue
        at[name], left = hull[step], left - extra
        if step + 1 < len(hull):
            heapq.heappush(heap, (-_slope(hull[step], hull[step + 1]), name, step + 1))
    _fill(options, at, left)
    return at


def _fill(options: Mapping[str, Sequence[Option]], at: dict[str, Option], left: int) -> None:
    """Spend what is left on the single upgrade that gains most, as long as one fits."""
    while True:
        best: tuple[float, str, Option] | None = None
        for name, choices in options.items():
            for option in choices:
                gain = at[name].loss - option.loss
                fits = 0 < option.bytes - at[name].bytes <= left
                if fits and gain > 0 and (best is None or gain > best[0]):
                    best = (gain, name, option)
        if best is None:
            return
        left -= best[2].bytes - at[best[1]].bytes
        at[best[1]] = best[2]


def _options(spec: TensorSpec, losses: Mapping[str, float]) -> list[Option]:
    """Return the options worth having: sorted by bytes, each losing less than the last."""
    found = [
        Option(name, align(tensor_bytes(TENSOR_TYPES[name], spec.shape)), loss)
        for name, loss in losses.items()
    ]
    found.sort(key=lambda option: (option.bytes, option.loss))
    kept: list[Option] = []
    for option in found:
        if not kept or option.loss < kept[-1].loss:
            kept.append(option)
    return kept


def _hull(options: Sequence[Option]) -> list[Option]:
    """Return the lower convex hull of loss over bytes, from the smallest to the best."""
    hull: list[Option] = []
    for option in options:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _slope(less: Option, more: Option) -> float:
    """Return what one more byte gains."""
    return (less.loss - more.loss) / max(1, more.bytes - less.bytes)


def _stock(
    tensors: Sequence[TensorSpec],
    hparams: RecipeParams,
    losses: Losses,
    budget: int,
    imatrix: bool,
) -> tuple[FileType, int, float] | None:
    """Return the largest stock file type within the budget whose types were all measured."""
    best: tuple[FileType, int, float] | None = None
    for file_type in FILE_TYPES.values():
        if not file_type.default.quantized or (file_type.needs_imatrix and not imatrix):
            continue
        try:
            types = assign(tensors, file_type.name, hparams, imatrix=imatrix)
        except BadRecipeError:
            continue
        found = expected(tensors, types, losses)
        if found is not None and found[0] <= budget and (best is None or found[0] > best[1]):
            best = (file_type, *found)
    return best


def expected(
    tensors: Sequence[TensorSpec], types: Sequence[TensorType], losses: Losses
) -> tuple[int, float] | None:
    """Return bytes and expected loss of given types; None where one was not measured."""
    total, loss = 0, 0.0
    for spec, kind in zip(tensors, types, strict=True):
        total += align(tensor_bytes(kind, spec.shape))
        if spec.name not in losses:
            continue
        if kind.name not in losses[spec.name]:
            return None
        loss += losses[spec.name][kind.name]
    return total, loss


def patterns(types: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return overrides that give exactly these types by name: one for each role and type."""
    layers: dict[tuple[str, str], list[str]] = {}
    for name, kind in types.items():
        found = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
        rest, layer = (found[2], found[1]) if found else (name, "")
        layers.setdefault((rest, kind), []).append(layer)
    result = []
    for (rest, kind), numbers in layers.items():
        blocks = rf"blk\.({'|'.join(numbers)})\." if numbers[0] else ""
        result.append((f"^{blocks}{re.escape(rest)}$", kind))
    return tuple(result)


def searchable(tensors: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Return the tensors whose type is free: those that may be quantized and are not yet."""
    return [spec for spec in tensors if quantizable(spec) and spec.native is None]


def group(spec: TensorSpec, n_layer: int) -> str:
    """Return the group a tensor is calibrated with: its role, and which third of the layers."""
    named = role(spec.name)
    found = re.match(r"blk\.(\d+)\.", spec.name)
    return f"{named}.{int(found[1]) * 3 // n_layer}" if found else named
