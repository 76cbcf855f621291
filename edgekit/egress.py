"""Offline: this process and all its children may reach this machine only.

Three layers. What would need the network is refused before it begins, with the fix
(`fetch_step`, `pull`). Children and the libraries they load are told by their environment. And
an audit hook in every process of ours refuses names and addresses all the same, so that a
mistake is an error with a name and not a packet. `tests/edgekit/test_egress.py` watches the
system calls, which no hook can be trusted to replace.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

FOR_CHILDREN: Final = {
    "EDGEKIT_OFFLINE": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "PIP_NO_INDEX": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}
"""Ours, and the switches of what a child or a plug-in of one may load."""


def enforce(wanted: bool) -> bool:
    """Cut this process and its children off, if wanted; return `wanted`.

    For the whole life of a process, or of a `bounded` block.
    """
    if wanted:
        from edgekit_server import egress

        os.environ.update(FOR_CHILDREN)
        egress.forbid()
    return wanted


def follow() -> None:
    """Cut this process off if its environment says so: the first thing that a child does."""
    from edgekit_server import egress

    enforce(egress.asked())


@contextmanager
def bounded() -> Iterator[None]:
    """Put things back at the end: a command run by other Python code must not cut that off."""
    before = {name: os.environ.get(name) for name in FOR_CHILDREN}
    try:
        yield
    finally:
        from edgekit_server import egress

        if not egress.asked_for(before):
            egress.allow()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
