"""Fit the constants of the speed formulas, one set per family, from published rows.

The predicted time is a sum of terms, each with a constant. A family's constants are its parent's
times a factor that is held near one, so that a family with few rows stays near its kin and one
with none inherits. Robust least squares on the logarithm of the time (Huber), by Gauss-Newton.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.speed_rows import Row

Array = NDArray[np.float64]

# Term -> (start, how far a root may go from it, how far a family may go from its parent); the
# last two are standard deviations of the logarithm.
DECODE = {
    "layer": (45, 0.5, 0.3),
    "sparse_layer": (25, 0.5, 0.3),
    "recurrent": (25, 0.5, 0.3),
    "step": (100, 0.3, 0.3),
    "split": (10, 0.7, 0.3),
    "barrier": (1.5, 0.7, 0.4),
    "read_k": (0.1, 0.7, 0.5),
    "read_q4": (0.1, 0.7, 0.5),
    "read_q8": (0.1, 0.7, 0.5),
    "read_float": (0.1, 0.7, 0.5),
    "unpack_k": (2.5, 0.7, 0.3),
    "unpack_q4": (2.5, 0.7, 0.3),
    "unpack_q8": (1.5, 0.7, 0.3),
    "unpack_float": (1.0, 0.7, 0.3),
    "cache": (0.4, 0.7, 0.4),
    "cache_plain": (1.5, 0.5, 0.3),
    "numa": (1.0, 0.7, 0.3),
}
PREFILL = {
    "layer": (100, 0.6, 0.4),
    "barrier": (20, 0.8, 0.4),
    "read": (1.5, 0.4, 0.3),
    "token": (20, 1.5, 0.4),
    "multiply_k": (3, 0.7, 0.35),
    "multiply_q4": (3, 0.7, 0.35),
    "multiply_q8": (3, 0.7, 0.3),
    "multiply_float": (2.5, 0.7, 0.3),
    "experts": (5, 0.7, 0.3),
    "attention": (5, 0.7, 0.4),
    "attention_plain": (8, 0.7, 0.4),
    "numa": (1.0, 0.7, 0.1),
}
# Measured on one core of a Sapphire Rapids guest with llama-cpp-python 0.3.36 (24 GB/s of
# K-quants a core with AMX, 15 without, ...); AVX2 and Neon scaled from it, x2.5 without 8-bit dot
# products. Not fitted.
FIXED = {
    "cpu-amx": (1 / 24, 1 / 30, 1 / 27, 1 / 30, 1.2),
    "cpu-avx512": (1 / 15, 1 / 13, 1 / 23, 1 / 30, 1.2),
    "cpu-avx2": (1 / 9, 1 / 9, 1 / 13, 1 / 15, 1.2),
    "cpu-desktop": (1 / 9, 1 / 9, 1 / 13, 1 / 15, 1.2),
    "cpu-neon": (1 / 4, 1 / 6, 1 / 7, 1 / 7, 2.0),
    "cpu-sbc": (1 / 4, 1 / 6, 1 / 7, 1 / 7, 2.0),
    "cpu-no-dot": (2.5 / 4, 2.5 / 6, 2.5 / 7, 2.5 / 7, 2.0),
}
CPU_FIXED = ("unpack_k", "unpack_q4", "unpack_q8", "unpack_float", "cell")
CPU_KIN = {"tg": 0.05, "pp": 0.1}
"""How far a family of CPUs may go from the mean CPU, in place of the third figure. What they
differ by is not fitted (unpacking, operations per core); memory, barriers and sockets are of no
instruction set, and a family of one or two servers would only learn how odd those are."""
HUBER = 0.12
NOISE = 0.1


def fixed(family: str) -> dict[str, float]:
    """Constants of a family that are measured elsewhere and not fitted."""
    return dict(zip(CPU_FIXED, FIXED[family], strict=True)) if family in FIXED else {}


@dataclass(slots=True)
class Fit:
    """Constants of one kind of test. `delta` holds per node the log factor to its parent."""

    names: tuple[str, ...]
    parents: Mapping[str, str | None]
    nodes: tuple[str, ...]
    delta: Array
    start: Array

    def constants(self, family: str) -> dict[str, float]:
        """All constants of a family, inherited ones too."""
        log = self.start.copy()
        for node in chain(family, self.parents):
            if node in self.nodes:
                log = log + self.delta[self.nodes.index(node)]
        found = {n: float(v) for n, v in zip(self.names, np.exp(log), strict=True)}
        if self.names == tuple(DECODE):
            return {**found, **fixed(family)}
        if chain(family, self.parents)[-1] == "cpu":
            # Nobody published prompts of mixtures on a CPU; on GPUs they run at half the rate.
            found["experts"] = 2 * found["multiply_k"]
        return found


def chain(family: str, parents: Mapping[str, str | None]) -> list[str]:
    """A family and its ancestors."""
    found: list[str] = []
    node: str | None = family
    while node is not None:
        found.append(node)
        node = parents.get(node)
    return found


@dataclass(slots=True)
class Table:
    """Rows as arrays: seconds, base (with what is not fitted), terms, family, weight."""

    rows: Sequence[Row]
    names: tuple[str, ...]
    y: Array
    base: Array
    x: Array
    weight: Array


def tabulate(rows: Sequence[Row], test: str) -> Table:
    """The rows of one test; a cell with many rows weighs more than one with few, but not as
    much more."""
    own = [r for r in rows if r.test == test]
    names = tuple(DECODE if test == "tg" else PREFILL)
    count: dict[tuple[str, str, str], int] = defaultdict(int)
    for r in own:
        count[r.cell] += 1
    base, x = np.zeros(len(own)), np.zeros((len(own), len(names)))
    for i, r in enumerate(own):
        start, terms = r.terms()
        held = fixed(r.device.family.id) if test == "tg" else {}
        base[i] = start + sum(v * held[k] for k, v in terms.items() if k in held)
        for k, v in terms.items():
            if k in names and k not in held:
                x[i, names.index(k)] = v
    return Table(
        own,
        names,
        np.array([r.seconds for r in own]),
        base,
        x,
        np.array([count[r.cell] ** -0.6 for r in own]),
    )


def fit(
    table: Table,
    parents: Mapping[str, str | None],
    keep: Sequence[int] | None = None,
    steps: int = 80,
) -> Fit:
    """Constants from the rows `keep` (all without it), from the start values to convergence."""
    index = np.arange(len(table.rows)) if keep is None else np.asarray(keep)
    spec = DECODE if table.names == tuple(DECODE) else PREFILL
    families = [table.rows[int(i)].device.family.id for i in index]
    nodes = tuple(sorted({n for f in set(families) for n in chain(f, parents)}))
    start = np.log(np.array([spec[n][0] for n in table.names]))
    x, y, base, weight = (a[index] for a in (table.x, table.y, table.base, table.weight))
    n_terms = x.shape[1]
    members = {f: np.array([f == g for g in families]) for f in set(families)}
    groups = [
        (np.flatnonzero(own), [nodes.index(n) for n in chain(f, parents)])
        for f, own in sorted(members.items())
    ]
    hold = 1 / np.array([_looseness(n, spec, parents) for n in nodes]) ** 2
    delta = np.zeros((len(nodes), n_terms))
    used = np.zeros(delta.shape, dtype=bool)
    for own, at in groups:
        used[at] |= (x[own] > 0).any(0)
    flat = np.flatnonzero(used.ravel())
    for _ in range(steps):
        # A row concerns its family and the ancestors alone, and all of them alike: the normal
        # equations are sums of one small block per family.
        left = np.diag(hold.ravel()).reshape(*delta.shape, *delta.shape)
        right = -hold * delta
        for own, at in groups:
            cost = np.exp(start + delta[at].sum(0)) * x[own]
            predicted = base[own] + cost.sum(1)
            miss = np.log(y[own] / predicted)
            slope = cost / predicted[:, None]
            w = weight[own] * np.minimum(1, HUBER / np.maximum(np.abs(miss), 1e-9)) / NOISE**2
            block, pull = slope.T @ (w[:, None] * slope), slope.T @ (w * miss)
            for a in at:
                right[a] += pull
                for b in at:
                    left[a, :, b, :] += block
        step = np.zeros(delta.size)
        square = left.reshape(delta.size, delta.size)[np.ix_(flat, flat)]
        step[flat] = np.linalg.solve(square, right.ravel()[flat])
        largest = float(np.abs(step).max())
        delta += step.reshape(delta.shape) * min(1.0, 0.7 / largest if largest else 1.0)
        if largest < 2e-3:
            break
    return Fit(table.names, parents, nodes, delta, start)


def _looseness(
    node: str,
    spec: Mapping[str, tuple[float, float, float]],
    parents: Mapping[str, str | None],
) -> list[float]:
    """How far each constant of a node may go from its parent's, as standard deviations."""
    if parents.get(node) is None:
        return [root for _, root, _ in spec.values()]
    if chain(node, parents)[-1] == "cpu":
        return [CPU_KIN["tg" if spec is DECODE else "pp"]] * len(spec)
    return [family for _, _, family in spec.values()]


def predicted(table: Table, found: Fit, index: Sequence[int]) -> Array:
    """Seconds of the rows `index` with the constants of `found`."""
    by_family: dict[str, Array] = {}
    out = np.zeros(len(index))
    for at, i in enumerate(index):
        family = table.rows[i].device.family.id
        if family not in by_family:
            constants = found.constants(family)
            by_family[family] = np.array([constants[n] for n in table.names])
        out[at] = table.base[i] + table.x[i] @ _without_fixed(by_family[family], table, family)
    return out


def _without_fixed(values: Array, table: Table, family: str) -> Array:
    held = fixed(family) if table.names == tuple(DECODE) else {}
    return np.array([0.0 if n in held else v for n, v in zip(table.names, values, strict=True)])


def spread(errors: Sequence[float], share: float = 0.9) -> float:
    """Relative half-width that holds `share` of the log errors; doubling and halving alike."""
    return 1 - math.exp(-float(np.quantile(np.abs(np.asarray(errors)), share)))
