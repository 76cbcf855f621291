"""How far the predicted speeds are from published measurements, device by device left out.

    python -m tests.benchmarks.fit_accuracy FILE.csv --json OUT [--shipped] [--trust AB] [--readme]

Scores any file with the columns of the measurements (see `speed_rows`). A cell is a device, a
model and a test (pp or tg); its error is the median over its rows. By default each device is left
out in turn: the constants are fitted again without any of its rows, with the same program that
made `families.toml`, and its own published factors are not used. `--shipped` predicts with the
constants as shipped instead, for rows nobody fitted on. Beside it, two rules of other tools on
the same decode rows: bandwidth over bytes, and that times 0.55.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit import speed
from edgekit.catalogue import load_families
from tests.benchmarks import speed_fit, speed_rows
from tests.benchmarks.speed_rows import Row

DATA = Path(__file__).parents[1] / "data" / "published_speeds" / "measurements.csv"
README = Path(__file__).parents[2] / "edgekit" / "FIT.md"
BEGIN, END = "<!-- fit-accuracy: begin -->", "<!-- fit-accuracy: end -->"
TESTS = {"tg": "decode", "pp": "prefill"}
TARGETS = {"decode": (0.10, 0.25), "prefill": (0.20, 0.40)}
KIN = 8
"""A family with fewer left-out cells takes the spread of its parent's."""
HELD, HELD_BY_KIN = 0.9, 0.95
"""Share of left-out cells that a stated range is made to hold; more where the cells are those of
other families, which say less."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A row and its figure: published over predicted time, and the range as a relative width."""

    row: Row
    ratio: float
    spread: float

    @property
    def error(self) -> float:
        """Relative error of the predicted speed."""
        return self.ratio - 1

    @property
    def held(self) -> bool:
        return abs(math.log(self.ratio)) <= -math.log(1 - self.spread) + 1e-9


def left_out(rows: Sequence[Row], test: str) -> list[Scored]:
    """Predict each device's rows with constants fitted on the other devices."""
    table = speed_fit.tabulate(rows, test)
    if not table.rows:
        return []
    parents = {name: family.parent for name, family in load_families().items()}
    ratios: dict[int, float] = {}
    for device in sorted({r.device.id for r in table.rows}):
        mine = [i for i, r in enumerate(table.rows) if r.device.id == device]
        keep = [i for i, r in enumerate(table.rows) if r.device.id != device]
        if not keep:
            continue
        # From the start values each time: a fit that began at the constants of all rows and
        # stopped early would still know the device (it made prefill look 2 points better).
        found = speed_fit.fit(table, parents, keep)
        for i, seconds in zip(mine, speed_fit.predicted(table, found, mine), strict=True):
            ratios[i] = table.rows[i].seconds / float(seconds)
    spreads = _spreads(table.rows, ratios, parents)
    return [Scored(table.rows[i], ratio, spreads(table.rows[i])) for i, ratio in ratios.items()]


def shipped(rows: Sequence[Row], test: str) -> list[Scored]:
    """Predict with what is shipped: the families, and the devices' own published factors."""
    found = []
    for row in rows:
        if row.test == test:
            estimate = _estimate(row)
            seconds = (row.users if test == "tg" else row.tokens) / estimate.value
            if test == "tg":
                seconds = 1 / estimate.value
            spread = 1 - estimate.low / estimate.value
            found.append(Scored(row, row.seconds / seconds, spread))
    return found


def _estimate(row: Row) -> speed.Estimate:
    from dataclasses import replace

    device = row.device
    watts = None if device.watts is None else device.watts * row.devices
    device = replace(device, count=row.devices, watts=watts)
    if row.test == "tg":
        depth = row.depth + row.tokens / 2
        return speed.decode_estimate(row.work, device, depth, row.users, flash=row.flash)
    found = speed.prefill_estimate(row.work, device, row.tokens, row.depth, flash=row.flash)
    assert found is not None
    return found


def family_spread(
    family: str, errors: dict[tuple[str, str], list[float]], parents: dict[str, str | None],
    without: str | None = None,
) -> float:  # fmt: skip
    """Half-width that holds nine in ten left-out cells of a family; of its parent's where there
    are few. `errors` holds the log errors of cells by family and device."""
    for node in speed_fit.chain(family, parents):
        kin = {f for f in parents if node in speed_fit.chain(f, parents)}
        own = [e for (f, d), cell in errors.items() if f in kin and d != without for e in cell]
        if len(own) >= KIN:
            # CPUs are held so near their kin that their cells are no evidence of their own.
            alone = node == family and speed_fit.chain(node, parents)[-1] != "cpu"
            return speed_fit.spread(own, HELD if alone else HELD_BY_KIN)
    return speed_fit.spread([e for cell in errors.values() for e in cell], HELD_BY_KIN)


def cell_errors(
    rows: Sequence[Row], ratios: dict[int, float]
) -> dict[tuple[str, str], list[float]]:
    """Log errors of cells, by family and device."""
    cells: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for i, ratio in ratios.items():
        cells[(rows[i].device.family.id, *rows[i].cell)].append(math.log(ratio))
    errors: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (family, device, _, _), logs in cells.items():
        errors[family, device].append(statistics.median(logs))
    return errors


class _spreads:
    """The stated range of a row, from the errors of other devices only."""

    def __init__(
        self, rows: Sequence[Row], ratios: dict[int, float], parents: dict[str, str | None]
    ) -> None:
        self._errors, self._parents = cell_errors(rows, ratios), parents
        self._known: dict[tuple[str, str], float] = {}

    def __call__(self, row: Row) -> float:
        key = (row.device.family.id, row.device.id)
        if key not in self._known:
            self._known[key] = family_spread(key[0], self._errors, self._parents, key[1])
        return self._known[key]


@dataclass(frozen=True, slots=True)
class Score:
    """Errors over cells."""

    cells: int
    rows: int
    median: float
    p90: float
    bias: float
    covered: float | None

    def as_dict(self) -> dict[str, object]:
        covered = None if self.covered is None else round(self.covered, 4)
        return {
            "cells": self.cells, "rows": self.rows, "median": round(self.median, 4),
            "p90": round(self.p90, 4), "bias": round(self.bias, 4), "covered": covered,
        }  # fmt: skip


def score(found: Sequence[Scored], *, ranges: bool = True) -> Score | None:
    """Per cell: the median |error| of its rows; covered when half of its rows are in range."""
    cells: dict[tuple[str, str, str], list[Scored]] = defaultdict(list)
    for one in found:
        cells[one.row.cell].append(one)
    if not cells:
        return None
    errors = sorted(statistics.median(abs(s.error) for s in cell) for cell in cells.values())
    bias = statistics.median(statistics.median(s.error for s in cell) for cell in cells.values())
    held = [sum(s.held for s in cell) * 2 >= len(cell) for cell in cells.values()]
    return Score(
        len(cells),
        len(found),
        statistics.median(errors),
        _quantile(errors, 0.9),
        bias,
        sum(held) / len(held) if ranges else None,
    )


def rule(rows: Iterable[Row], factor: float) -> list[Scored]:
    """Decode by bandwidth over the size of the file (a mixture: over what a token reads)."""
    found = []
    for row in rows:
        if row.test == "tg" and row.device.bandwidth_gb_s:
            size = row.gib * 1024**3
            if row.work.n_experts:
                size = row.work.read_bytes()
            predicted = factor * row.device.bandwidth_gb_s * 1e9 / size * row.users
            found.append(Scored(row, predicted / row.tok_s, 0.5))
    return found


def report(path: Path, trust: str, *, refit: bool) -> dict[str, object]:
    """All figures of a file as JSON values."""
    rows, lost = speed_rows.read(path, trust)
    record: dict[str, object] = {
        "schema": "edgekit.fit-accuracy/1",
        "file": path.name,
        "mode": "leave one device out" if refit else "constants as shipped",
        "trust": trust,
        "rows": len(rows),
        "devices": len({r.device.id for r in rows}),
        "models": len({r.model for r in rows}),
        "unresolved": dict(sorted(lost.items(), key=lambda x: -x[1])),
    }
    for test, name in TESTS.items():
        found = left_out(rows, test) if refit else shipped(rows, test)
        total = score(found)
        record[name] = None if total is None else total.as_dict()
        alone = score([s for s in found if s.row.device.memory_kind != "shared"])
        record[f"{name}_on_accelerators"] = None if alone is None else alone.as_dict()
        record[f"{name}_by_family"] = _by(found, lambda s: s.row.device.family.id)
        record[f"{name}_by_device"] = _by(found, lambda s: s.row.device.id)
    for name, factor in (("roofline", 1.0), ("bandwidth_over_size_x_0.55", 0.55)):
        total = score(rule(rows, factor), ranges=False)
        record[name] = None if total is None else total.as_dict()
    ttft = score(_ttft(rows), ranges=False)
    record["ttft"] = None if ttft is None else ttft.as_dict()
    return record


def _ttft(rows: Sequence[Row]) -> list[Scored]:
    """Time to first token where a row gives it: the prompt and one step, as shipped."""
    found = []
    for row in rows:
        if row.ttft_ms and row.test == "pp":
            prompt = row.tokens / _estimate(row).value
            step = speed.step_seconds(row.work, row.device, row.depth + row.tokens)
            found.append(Scored(row, (prompt + step) * 1000 / row.ttft_ms, 0.5))
    return found


def _by(found: Sequence[Scored], key: object) -> dict[str, object]:
    groups: dict[str, list[Scored]] = defaultdict(list)
    for one in found:
        groups[key(one)].append(one)  # type: ignore[operator]
    scores = {name: score(group) for name, group in sorted(groups.items())}
    return {name: s.as_dict() for name, s in scores.items() if s is not None}


def _quantile(ordered: Sequence[float], share: float) -> float:
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def lines(record: dict[str, object]) -> list[str]:
    """The table as Markdown, which reads well in a terminal too."""
    out = [
        f"{record['rows']:,} rows of trust {record['trust']}, {record['devices']} devices, "
        f"{record['models']} models; {record['mode']}.",
        "",
        "| | cells | median error | 90 % below | bias | in the stated range |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    names = {
        "decode": "decode",
        "decode_on_accelerators": "decode, without CPUs",
        "prefill": "prefill",
        "prefill_on_accelerators": "prefill, without CPUs",
        "ttft": "time to first token",
        "roofline": "decode by bandwidth / bytes alone",
        "bandwidth_over_size_x_0.55": "decode by bandwidth / size x 0.55",
    }
    for key, name in names.items():
        found = record.get(key)
        if isinstance(found, dict):
            held = "" if found["covered"] is None else f"{found['covered']:.0%}"
            out.append(
                f"| {name} | {found['cells']} | {found['median']:.1%} | {found['p90']:.0%} "
                f"| {found['bias']:+.1%} | {held} |"
            )
    out += [
        "",
        "| family | decode cells | median | 90 % | prefill cells | median | 90 % |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    decode, prefill = record["decode_by_family"], record["prefill_by_family"]
    assert isinstance(decode, dict)
    assert isinstance(prefill, dict)
    for family in sorted({*decode, *prefill}):
        out.append(f"| {family} | {_cells(decode.get(family))} | {_cells(prefill.get(family))} |")
    return out


def _cells(found: object) -> str:
    if not isinstance(found, dict):
        return "| | "
    return f"{found['cells']} | {found['median']:.0%} | {found['p90']:.0%}"


def unresolved_lines(lost: Counter[str] | dict[str, int]) -> list[str]:
    return [f"{count:5}  {why}" for why, count in lost.items()]


def write_readme(record: dict[str, object], path: Path = README) -> None:
    """Put the table between the marks of the page."""
    text = path.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    block = "\n".join(lines(record))
    path.write_text(f"{head}{BEGIN}\n{block}\n{END}{tail}", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    about = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="fit_accuracy", description=about)
    parser.add_argument("file", nargs="?", type=Path, default=DATA)
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--shipped", action="store_true", help="do not fit again")
    parser.add_argument("--trust", default="AB")
    parser.add_argument("--readme", action="store_true", help="write the table into FIT.md")
    asked = parser.parse_args(argv)
    record = report(asked.file, asked.trust, refit=not asked.shipped)
    print("\n".join(lines(record)))
    lost = record["unresolved"]
    assert isinstance(lost, dict)
    if lost:
        print(f"\nNot resolved, {sum(lost.values())} rows:")
        print("\n".join(unresolved_lines(lost)))
    if asked.json:
        asked.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if asked.readme:
        write_readme(record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
