"""`edgekit probe`: what this machine is."""

from __future__ import annotations

import typer

from edgekit.cli import output
from edgekit.cli.options import Json, this_machine


def register(app: typer.Typer) -> None:
    @app.command(short_help="Look at this machine.")
    def probe(
        json: Json = False,
        canary: bool = typer.Option(True, help="Decode a few tokens to see if the engine works."),
    ) -> None:
        """Look at this machine: CPU, memory, accelerators, and whether the engine works.

        Example: edgekit probe --json
        """
        from edgekit.probe import to_json

        machine = this_machine(canary=canary)
        if json:
            output.emit(to_json(machine))
            return
        for label, text in lines(machine):
            output.say(label, text)


def lines(machine: object) -> list[tuple[str, str]]:
    """Return the labelled lines that describe a machine."""
    from edgekit.machine import Machine
    from edgekit.units import UNKNOWN, format_gib

    assert isinstance(machine, Machine)
    cpu, memory = machine.host.cpu, machine.host.memory
    marks = [
        name for flag, name in (("avx512f", "AVX-512"), ("amx_int8", "AMX")) if flag in cpu.flags
    ]
    cores = f"{cpu.physical_cores or cpu.logical_cores or UNKNOWN} cores"
    total = memory.limit_bytes or memory.total_bytes
    parts = [
        f"{cpu.model or 'unknown CPU'} ({', '.join([cores, *marks])})",
        f"{format_gib(total)} RAM, {format_gib(memory.available_bytes)} free",
    ]
    if memory.bandwidth_gb_s is not None:
        parts.append(f"memory {memory.bandwidth_gb_s:.0f} GB/s measured")
    found = [("Machine", " · ".join(parts))]
    for gpu in machine.accelerators:
        room = f"{format_gib(gpu.memory_free_bytes)} of {format_gib(gpu.memory_total_bytes)} free"
        found.append(("GPU", " · ".join([gpu.name, room, *([gpu.driver] if gpu.driver else [])])))
    engine = machine.engine
    if engine.llama_cpp_python:
        kinds = ", ".join(engine.backends) if engine.backends else "backends unknown"
        found.append(("Engine", f"llama-cpp-python {engine.llama_cpp_python}, {kinds}"))
    else:
        found.append(("Engine", "none installed: pip install 'edgekit[all]'"))
    if engine.canary is not None:
        found.append(
            (
                "Canary" if engine.canary.ok and engine.canary.use_extra_bufts else "Warning",
                engine.canary.reason,
            )
        )
    if machine.device_profile:
        found.append(("Profile", machine.device_profile))
    return found + [("Note", note) for note in machine.notes]
