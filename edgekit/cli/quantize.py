"""`edgekit quantize`: a checkpoint folder to a GGUF in one pass."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import output
from edgekit.cli.options import Json


def register(app: typer.Typer) -> None:
    @app.command(short_help="Convert a checkpoint to a quantized GGUF.")
    def quantize(
        source: Annotated[Path, typer.Argument(help="Folder with config.json and safetensors.")],
        destination: Annotated[
            Path | None, typer.Argument(help="The GGUF to write. Default: beside the folder.")
        ] = None,
        filetype: Annotated[str, typer.Option(help="File type to write.")] = "Q4_K_M",
        threads: Annotated[int | None, typer.Option(min=1, help="Default: all cores.")] = None,
        split_size: Annotated[
            str | None,
            typer.Option(help="Cut into files of at most this size, such as 3.9GB (FAT32)."),
        ] = None,
        force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Say what would be written.")
        ] = False,
        json: Json = False,
    ) -> None:
        """Convert and quantize a checkpoint in one pass, with no intermediate file.

        Example: edgekit quantize ./Mistral-Small-24B-Instruct-2501 --filetype Q5_K_M
        """
        from edgekit.errors import CannotCreateError
        from edgekit.units import format_bytes, parse_bytes

        split_bytes = parse_bytes(split_size) if split_size else None
        kind = filetype.upper()
        # The checkpoint is read before anything else is said about what would be written.
        tensor_bytes = _predicted_bytes(source, kind)
        target = destination or source.resolve().parent / f"{source.resolve().name}-{kind}.gguf"
        pieces = sorted(target.parent.glob(f"{glob.escape(target.stem)}-*-of-*{target.suffix}"))
        existing = [target] if target.exists() else pieces if split_bytes else []
        if existing and not force:
            raise CannotCreateError(
                f"{existing[0]} exists",
                code="destination_exists",
                hint="pass --force to replace it",
            )
        if dry_run:
            plan = {"source": str(source), "destination": str(target), "filetype": kind}
            if json:
                record = {"schema": "edgekit.quantize-plan/1", **plan}
                output.emit(record | {"tensor_bytes": tensor_bytes})
            else:
                output.say("From", str(source))
                output.say("To", str(target))
                output.say("Type", f"{kind}, {format_bytes(tensor_bytes)} of tensors")
            return
        from edgekit.converter import convert
        from edgekit.preflight import check_room

        check_room(target.parent, tensor_bytes)
        with output.StepLines(quiet=json) as lines:
            lines.begin("quantize", f"{source.resolve().name} → {kind}")
            made = convert(
                source,
                target,
                kind,
                threads=threads,
                progress=lines.progress,
                split_bytes=split_bytes,
            )
            lines.end("quantize", f"{made.path.name}, {format_bytes(made.file_bytes)}")
        if json:
            output.emit(
                {
                    "schema": "edgekit.quantize/1",
                    "path": str(made.path),
                    "filetype": made.filetype,
                    "file_bytes": made.file_bytes,
                    "tensor_bytes": made.tensor_bytes,
                    "n_tensors": made.n_tensors,
                    "seconds": made.seconds,
                    "sha256": made.sha256,
                    "source_digest": made.source_digest,
                    "reasons": list(made.reasons),
                }
            )


def _predicted_bytes(source: Path, filetype: str) -> int:
    """Return tensor bytes from config.json. Raises what `read_config` and the recipe raise."""
    from edgekit.catalogue import find_filetype
    from edgekit.source import read_config
    from edgekit_quantize.recipe import weights_bytes

    return weights_bytes(read_config(source), find_filetype(filetype).id)
