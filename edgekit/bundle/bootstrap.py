"""The texts that make a bundle start by itself: a script for plain Python, and a page to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

START: Final = "bootstrap/start.py"
README: Final = "START-HERE.txt"


def bootstrap_texts(targets: Sequence[str], models: Sequence[str]) -> dict[str, bytes]:
    """Return the bootstrap's files by path, for targets and models as a person would name them."""
    script = Path(__file__).with_name("start.py").read_bytes()
    page = _PAGE.format(
        models="\n".join(f"    {name}" for name in models),
        targets="\n".join(f"    {name}" for name in targets),
    )
    return {START: script, README: page.encode()}


_PAGE: Final = """\
START HERE

This folder holds language models and everything that runs them, for a machine without a network.

Models:
{models}
Machines it was made for (system, processor, Python, engine):
{targets}

1. Is the folder whole? In this folder:

    sha256sum -c --quiet SHA256SUMS

2. Whose is it? Put the maker's public key where it is trusted, from another source than this
   folder: ~/.config/edgekit/trust.d/NAME.pub, or pass it in step 3 with --trust NAME.pub. edgekit
   proves the signature with it before a model is touched. The script of step 3 runs before that:
   compare its digest with the one the maker tells you:

    sha256sum bootstrap/start.py

3. Set it up and serve, with one command:

    python3 bootstrap/start.py

   It needs Python 3.11 or newer and nothing else: no network, no compiler, no pip. The packages
   go to ~/.local/share/edgekit/runtime or to --venv DIR, the models to edgekit's store
   (/var/lib/edgekit for root, else under ~/.local/share). --in-place serves the models from this
   medium, --no-deploy stops before serving, --help says the rest. Stopped half-way, the same
   command goes on.
"""
