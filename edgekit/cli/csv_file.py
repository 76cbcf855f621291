"""Tables as files for a spreadsheet: one line a row, a header, unknown left empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

CsvOption = Annotated[
    Path | None, typer.Option("--csv", metavar="FILE", help="Write all of it as a table too.")
]


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows that have the same keys, UTF-8. Raises what `store.write_durably` raises."""
    import csv
    import io

    from edgekit.store import write_durably

    text = io.StringIO()
    writer = csv.writer(text)
    if rows:
        writer.writerow(rows[0])
        writer.writerows([_cell(value) for value in row.values()] for row in rows)
    write_durably(path, text.getvalue().encode())


def _cell(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    # A name out of somebody's catalogue must not become a formula of the spreadsheet.
    return (
        f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value
    )
