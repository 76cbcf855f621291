"""Fit the constants of `families.toml` and `published_speeds.toml` again, and write both.

    python -m tests.benchmarks.calibrate [FILE.csv]

What a family is (its parent, its backends, what a watt sustains) stays as the file has it; the
constants, ranges, fitted devices and sources are written.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import edgekit_profiles
from edgekit.catalogue import load_families
from edgekit.facts import Family
from tests.benchmarks import fit_accuracy, speed_fit, speed_rows
from tests.benchmarks.speed_rows import Row

FOLDER = Path(next(iter(edgekit_profiles.__path__)))
PRIOR_CELLS = 1.0
"""A device's own factor is drawn towards its family as if by so many cells at the family's."""

FAMILIES_HEAD = """\
# Constants of the speed formulas, one table per device family; written by
# tests/benchmarks/calibrate.py from the published rows in tests/data, see edgekit/FIT.md.
#
# Seconds of a decode step = bytes / bandwidth + sum of term x constant; of a prompt = the sum.
# The terms are in edgekit/speed_terms.py. layer, sparse_layer, step, split, barrier: microseconds
# (the last three per step, layer and core); read: what is lost of the bandwidth, as a share of the
# time that the bytes take; unpack: operations at the fp32 peak for each operation of the model
# (on a CPU: nanoseconds per byte and core); multiply, experts, attention: time against the peak.
#
# decode_spread, prefill_spread: relative half-width that holds nine in ten cells of devices that
# were left out of the fit. fitted_on: devices with published rows; none: inherited from the
# parent. tflops_per_watt, gflops_per_core, unpack_cost, other_backends: kept by hand.
"""
PUBLISHED_HEAD = """\
# How a device's own published rows lie against its family: measured time over the family's, by
# class of file type (filetypes.toml), drawn towards 1 where there are few. Written by
# tests/benchmarks/calibrate.py; the rows and their sources are in tests/data/published_speeds.
"""


def main(argv: Sequence[str]) -> int:
    path = Path(argv[0]) if argv else fit_accuracy.DATA
    rows, _ = speed_rows.read(path)
    families = load_families()
    parents = {name: family.parent for name, family in families.items()}
    tables = {test: speed_fit.tabulate(rows, test) for test in fit_accuracy.TESTS}
    fits = {test: speed_fit.fit(table, parents) for test, table in tables.items()}
    spreads = {test: _family_spreads(rows, test, parents) for test in tables}
    text = [FAMILIES_HEAD]
    for name, family in families.items():
        own = sorted({r.device.id for r in rows if r.device.family.id == name})
        text += _family(name, family, fits, spreads, own, parents)
    (FOLDER / "families.toml").write_text("\n".join(text), encoding="utf-8")
    published = [PUBLISHED_HEAD]
    for device in sorted({r.device.id for r in rows}):
        published += _published(device, tables, fits)
    (FOLDER / "published_speeds.toml").write_text("\n".join(published), encoding="utf-8")
    return 0


def _family_spreads(
    rows: Sequence[Row], test: str, parents: dict[str, str | None]
) -> dict[str, float]:
    found = fit_accuracy.left_out(rows, test)
    ratios = dict(enumerate(s.ratio for s in found))
    errors = fit_accuracy.cell_errors([s.row for s in found], ratios)
    return {name: fit_accuracy.family_spread(name, errors, parents) for name in parents}


def _family(
    name: str,
    family: Family,
    fits: Mapping[str, speed_fit.Fit],
    spreads: Mapping[str, Mapping[str, float]],
    own: Sequence[str],
    parents: Mapping[str, str | None],
) -> list[str]:
    cpu = speed_fit.chain(name, parents)[-1] == "cpu"
    out = [f"[{name}]"]
    if family.parent:
        out.append(f'parent = "{family.parent}"')
    for key in ("tflops_per_watt", "gflops_per_core"):
        value = getattr(family, key)
        if value is not None:
            out.append(f"{key} = {value:g}")
    if family.unpack_cost != 1:
        out.append(f"unpack_cost = {family.unpack_cost:g}")
    if family.other_backends:
        pairs = ", ".join(f'{k} = "{v}"' for k, v in family.other_backends.items())
        out.append(f"other_backends = {{ {pairs} }}")
    out.append(f"decode_spread = {min(0.8, spreads['tg'][name]):.2f}")
    out.append(f"prefill_spread = {min(0.8, spreads['pp'][name]):.2f}")
    quoted = ", ".join(f'"{device}"' for device in own)
    out.append(f"fitted_on = [{quoted}]")
    basis = f"inherited from {family.parent}" if family.parent else "the mean of its kin"
    if own:
        basis = f"fitted on rows of {len(own)} devices"
    out.append(f'source = "{basis}"')
    skip = ("barrier", "numa") if not cpu else ()
    for title, test in (("decode", "tg"), ("prefill", "pp")):
        constants = fits[test].constants(name)
        if cpu and test == "tg" and not speed_fit.fixed(name):
            constants |= speed_fit.fixed("cpu-desktop")
        out.append(f"[{name}.{title}]")
        out += [f"{k} = {v:.4g}" for k, v in constants.items() if k not in skip]
    return [*out, ""]


def _published(
    device: str, tables: Mapping[str, speed_fit.Table], fits: Mapping[str, speed_fit.Fit]
) -> list[str]:
    out: list[str] = []
    count, sources = 0, set()
    for test, title in fit_accuracy.TESTS.items():
        table = tables[test]
        own = [i for i, r in enumerate(table.rows) if r.device.id == device]
        # Rows under another backend say nothing about the device's usual one.
        backends = {table.rows[i].device.family.id for i in own}
        usual = next((f for f in sorted(backends, key=len)), None)
        own = [i for i in own if table.rows[i].device.family.id == usual]
        if not own:
            continue
        seconds = speed_fit.predicted(table, fits[test], own)
        cells: dict[tuple[str, str], list[float]] = defaultdict(list)
        for i, s in zip(own, seconds, strict=True):
            row = table.rows[i]
            cells[row.work.unpack, row.model].append(math.log(row.seconds / float(s)))
            sources.add(row.source)
        count += len(own)
        factors: dict[str, float] = {}
        for unpack in sorted({u for u, _ in cells}):
            logs = [statistics.median(v) for (u, _), v in cells.items() if u == unpack]
            drawn = sum(_clip(x) for x in logs) / (len(logs) + PRIOR_CELLS)
            factors[unpack] = math.exp(drawn)
        left = [x - math.log(factors[unpack]) for (unpack, _), v in cells.items() for x in v]
        pairs = ", ".join(f"{k} = {v:.3f}" for k, v in factors.items())
        out.append(f"{title} = {{ {pairs} }}")
        # Few cells say little about their own scatter; another model or engine may differ more.
        wide = max(speed_fit.spread(left, 0.95), 0.30 / math.sqrt(len(cells)), 0.08)
        out.append(f"{title}_spread = {min(0.8, wide):.2f}")
    quoted = ", ".join(f'"{s}"' for s in sorted(sources))
    return [f"[{device}]", f"rows = {count}", f"sources = [{quoted}]", *out, ""]


def _clip(log: float) -> float:
    return max(-1.5, min(1.5, log))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
