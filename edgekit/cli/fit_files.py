"""`fit --html`, `--csv`, `--explain`: the same record as a page, a table file, a working."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli import output

if TYPE_CHECKING:
    from edgekit.candidate import Candidate

HtmlOption = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write the report as a page with charts."),
]
ExplainOption = Annotated[
    bool, typer.Option("--explain", help="Show each figure's formula, inputs and source.")
]


def write_files(
    record: Mapping[str, Any], *, html: Path | None, csv: Path | None, quiet: bool
) -> None:
    """Write what was asked for and, unless `quiet`, say where. Raises as `store.write_durably`."""
    from edgekit.cli.csv_file import write_csv
    from edgekit.fit_report import flat_rows
    from edgekit.report.fit_html import fit_page
    from edgekit.store import write_durably

    if html is not None:
        write_durably(html, fit_page(record).encode())
    if csv is not None:
        write_csv(csv, flat_rows(record))
    for label, path in (("Report", html), ("Table", csv)):
        if path is not None and not quiet:
            output.say(label, str(path))


def write_page(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record of `compare` or `buy` as a page. Raises as `store.write_durably`."""
    from edgekit.report.choice_html import buy_page, compare_page
    from edgekit.store import write_durably

    draw = compare_page if record["schema"] == "edgekit.compare/1" else buy_page
    write_durably(path, draw(record).encode())


def show_explained(candidates: Sequence[Candidate]) -> None:
    """Print the working behind every figure of each candidate."""
    from edgekit.explain import explain

    for c in candidates:
        output.say("Working", f"{c.card.id} {c.filetype.id} on {c.device.name}")
        for figure in explain(c):
            print(f"\n{figure.name}: {figure.value}")
            _indented(figure.formula, "  = ")
            for line in figure.filled:
                _indented(line, "    ")
            for given in figure.inputs:
                _indented(f"{given.name} {given.value} ({given.source})", "  - ")
            _indented(f"basis: {figure.basis}", "  ")
        print()


def _indented(text: str, lead: str) -> None:
    first, *rest = output.wrap(text, output.WIDTH - len(lead))
    print(f"{lead}{first}")
    for line in rest:
        print(f"{'':{len(lead)}}{line}")
