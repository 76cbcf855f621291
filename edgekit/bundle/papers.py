"""The papers beside a bundle's index, for people and scanners with no tool of ours.

sbom.cdx.json  vex.openvex.json  licences/<model>-<file type>/{LICENSE,NOTICE,…}.txt
"""

from __future__ import annotations

from typing import Final

from edgekit.bundle.documents import FIT
from edgekit.bundle.layout import Layout
from edgekit.bundle.model import models_of
from edgekit.bundle.sbom import bill_of_materials, dump, read_paper
from edgekit.bundle.vex import openvex

SBOM: Final = "sbom.cdx.json"
VEX: Final = "vex.openvex.json"


def papers_of(layout: Layout) -> dict[str, bytes]:
    """Return the papers of a layout whose index is written, by path. Raises BadDataError."""
    bill = bill_of_materials(layout)
    versions = {c["name"]: c["version"] for c in bill["components"] if c["type"] == "library"}
    found = {SBOM: dump(bill), VEX: dump(openvex(versions))}
    for model in models_of(layout):
        what = f"{model.entry.model}-{model.entry.filetype}"
        for name, layer in model.documents.items():
            if name.endswith(".txt"):
                found[f"licences/{what}/{name}"] = read_paper(layout, layer)
            elif name == FIT:
                found[f"fit/{what}.json"] = read_paper(layout, layer)
    return found
