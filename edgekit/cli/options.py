"""Options that several commands share, spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.facts import Device
    from edgekit.machine import Machine

DEFAULT_USERS = 4

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Users = Annotated[int, typer.Option(min=1, max=256, help="People or agents at the same time.")]
Ctx = Annotated[
    int | None,
    typer.Option(min=256, help="Context in tokens, shared by all users. Default: what fits."),
]
FileTypeOption = Annotated[
    str | None, typer.Option(help="File type such as Q4_K_M. Default: the best that fits.")
]
Offload = Annotated[
    int | None,
    typer.Option(min=0, help="Layers on the GPU, the rest in host memory. Default: all."),
]
Source = Annotated[
    Path | None,
    typer.Option(help="Folder, GGUF or hub repository to use instead of the catalogue's."),
]
DeviceOption = Annotated[
    str, typer.Option(help="A device of `edgekit devices`, or `this` machine.")
]


def _cut_off(wanted: bool) -> bool:
    from edgekit import egress

    return egress.enforce(wanted)


Offline = Annotated[
    bool,
    typer.Option(
        "--offline",
        envvar="EDGEKIT_OFFLINE",
        callback=_cut_off,
        help="Nothing leaves this machine.",
    ),
]
Mirror = Annotated[
    str | None,
    typer.Option(
        envvar="EDGEKIT_MIRROR", metavar="URL", help="Ask this address instead of huggingface.co."
    ),
]
HiddenMirror = Annotated[str | None, typer.Option("--mirror", envvar="EDGEKIT_MIRROR", hidden=True)]
"""For commands whose help has no room left."""

Host = Annotated[str, typer.Option(help="Address to listen on; others than loopback need a key.")]
Port = Annotated[int, typer.Option(min=1, max=65535)]


def keys_option(command: str) -> Any:
    """Return the option of API keys; its environment twin of all commands is EDGEKIT_API_KEY.

    Keys belong there: a command line can be read by every user of the machine.
    """
    return typer.Option(
        "--api-key",
        envvar=[f"EDGEKIT_{command}_API_KEY", "EDGEKIT_API_KEY"],
        help="Key that clients must send; better in EDGEKIT_API_KEY, where `ps` does not show it.",
    )


def model_and_filetype(text: str, filetype: str | None) -> tuple[str, str | None]:
    """Split `model:FILETYPE`. Raises UsageError when --filetype says something else."""
    name, _, suffix = text.partition(":")
    if suffix and filetype and suffix.upper() != filetype.upper():
        raise UsageError(
            f"{text} and --filetype {filetype} contradict each other",
            code="two_filetypes",
            hint="say the file type once",
        )
    if not name:
        raise UsageError(
            f"{text!r} names no model", code="bad_model_name", hint="write MODEL or MODEL:FILETYPE"
        )
    chosen = suffix or filetype
    return name, chosen.upper() if chosen else None


def device_for(name: str) -> tuple[Device, Machine | None]:
    """Return the device to plan for; `this` probes the machine."""
    from edgekit.catalogue import find_device
    from edgekit.fit import device_from_machine

    device = find_device(name)
    if device.id != "this":
        return device, None
    machine = this_machine()
    return device_from_machine(machine), machine


def this_machine(*, canary: bool | None = None) -> Machine:
    """Probe; with `canary` (default: when there is an accelerator) try the engine too."""
    from edgekit import paths, pocket
    from edgekit.probe import probe
    from edgekit.store import Store

    if canary is None:
        machine = probe()
        if not machine.accelerators:
            return machine
    elif not canary:
        return probe()
    with pocket.canary_model(Store(paths.store_dir())) as model:
        return probe(canary_model=model)
