"""What the terminal shows: a table per scenario, then the targets. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.benchmarks.serve.figures import Run, Verdict, compare, medians

NO_RATIO = {"overhead", "cost", "valid", "outputs", "cached", "tokens", "others_cpu_s"}
"""Figures that are shares or counts: shown, not divided."""
WIDTH, COLUMN = 20, 38


def value(name: str, number: float) -> str:
    """Return a figure with its unit, which its name ends in."""
    if name.endswith("_bytes"):
        return f"{number / 2**20:.1f} MiB"
    if name.endswith("tokens_per_s"):
        return f"{number:.1f} tok/s"
    if name.endswith("_us"):
        return f"{number:.0f} us"
    if name.endswith("_s"):
        return f"{number * 1000:.0f} ms" if number < 10 else f"{number:.1f} s"
    if name in ("overhead", "cost", "valid", "cached"):
        return f"{number:.1%}"
    return f"{number:.0f}"


def table(title: str, servers: Sequence[str], runs: Sequence[Run]) -> Iterator[str]:
    """Yield the lines of one scenario: medians, and the first server divided by each other."""
    yield f"\n{title}"
    middle = medians(runs)
    ours = servers[0]
    names = list(dict.fromkeys(name for run in runs for name in run.figures))
    shown = [server for server in servers if server in middle]
    yield f"  {'':{WIDTH}}" + "".join(f"{server:>{COLUMN}}" for server in shown)
    for name in names:
        cells = []
        for server in shown:
            number = middle[server].get(name)
            cell = "-" if number is None else value(name, number)
            found = compare(runs, name, ours, server, "ratio")
            if server != ours and found is not None and name not in NO_RATIO:
                cell += f"  x{found.median:.2f} ({found.low:.2f}-{found.high:.2f})"
            cells.append(f"{cell:>{COLUMN}}")
        yield f"  {name:{WIDTH}}" + "".join(cells)
    for run in runs:
        if run.error is not None:
            yield f"  {run.server}, round {run.round}: {run.error}"


def targets(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """Yield a line per target: what it asks, what was found, whether it holds."""
    yield "\nTargets (not asserted)"
    for verdict in verdicts:
        target, found = verdict.target, verdict.spread
        beside = "" if target.how == "value" else f" beside {target.peer}"
        asked = f"{target.sign} {target.limit:g}"
        said = "not measured"
        if found is not None:
            said = f"{found.median:.3f} ({found.low:.3f}-{found.high:.3f}, n={found.n})"
        mark = {True: "holds", False: "MISSED", None: ""}[verdict.held]
        yield f"  {target.about + beside:62}{asked:>9}  {said:34}{mark}"
