"""`edgekit quantize`: a checkpoint folder to a GGUF in one pass."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import output
from edgekit.cli.options import Json

if TYPE_CHECKING:
    from edgekit.converter import Made, Wanted

DEFAULT_FILETYPE = "Q4_K_M"
VISION_FILETYPE = "F16"
"""Vision parts are small and lose much when quantized; llama.cpp's converter writes F16 too."""


def register(app: typer.Typer) -> None:
    @app.command(short_help="Convert a checkpoint to a quantized GGUF.")
    def quantize(
        source: Annotated[Path, typer.Argument(help="Folder with config.json and safetensors.")],
        destination: Annotated[
            Path | None, typer.Argument(help="The GGUF to write. Default: beside the folder.")
        ] = None,
        filetype: Annotated[
            str | None, typer.Option(help="File type to write. Default: Q4_K_M.")
        ] = None,
        target_size: Annotated[
            str | None, typer.Option(help="The mix of types that loses least in this size.")
        ] = None,
        target_bpw: Annotated[
            float | None, typer.Option(help="The same, in bits per weight.")
        ] = None,
        imatrix: Annotated[
            Path | None, typer.Option(help="Importance matrix; `edgekit imatrix` makes one.")
        ] = None,
        recipe: Annotated[Path | None, typer.Option(help="File type and overrides.")] = None,
        recipe_out: Annotated[Path | None, typer.Option(help="Write the mix there.")] = None,
        tensor_type: Annotated[
            list[str] | None,
            typer.Option(metavar="REGEX=TYPE", help="For these tensors; may be repeated."),
        ] = None,
        output_tensor_type: Annotated[str | None, typer.Option(help="For the output.")] = None,
        token_embedding_type: Annotated[
            str | None, typer.Option(help="For the token embeddings.")
        ] = None,
        pure: Annotated[bool, typer.Option("--pure", help="One type, no mix.")] = False,
        vision: Annotated[
            bool, typer.Option("--vision", help="Convert the vision part: an mmproj file.")
        ] = False,
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
        from edgekit.converter import Wanted
        from edgekit.units import format_bytes, parse_bytes

        split_bytes = parse_bytes(split_size) if split_size else None
        wanted = Wanted(
            filetype=filetype.upper() if filetype else None,
            imatrix=imatrix,
            tensor_types=tuple(map(_pattern, tensor_type or ())),
            output=output_tensor_type,
            embedding=token_embedding_type,
            pure=pure,
            recipe=recipe,
            target_bytes=parse_bytes(target_size) if target_size else None,
            target_bpw=target_bpw,
            vision=vision,
        )
        _check_wanted(wanted, recipe_out)
        # The checkpoint is read before anything else is said about what would be written.
        kind, tensor_bytes = _predicted(source, wanted)
        stem = f"{'mmproj-' if vision else ''}{source.resolve().name}-{kind}"
        target = destination or source.resolve().parent / f"{stem}.gguf"
        _check_free(target, split=split_bytes is not None, force=force)
        if dry_run:
            plan = {"source": str(source), "destination": str(target), "filetype": kind}
            if json:
                record = {"schema": "edgekit.quantize-plan/1", **plan}
                output.emit(record | {"tensor_bytes": tensor_bytes})
            else:
                most = "at most " if wanted.searched else ""
                output.say("From", str(source))
                output.say("To", str(target))
                output.say("Type", f"{kind}, {most}{format_bytes(tensor_bytes)} of tensors")
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
                wanted=wanted,
            )
            lines.end("quantize", f"{made.path.name}, {format_bytes(made.file_bytes)}")
        if recipe_out is not None and made.recipe is not None:
            recipe_out.write_text(made.recipe, encoding="utf-8")
        if json:
            _emit(made)
        elif wanted.searched:
            for reason in made.reasons[:2]:
                output.say("Mix", reason)


def _emit(made: Made) -> None:
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


def _pattern(text: str) -> tuple[str, str]:
    """Split REGEX=TYPE at its last sign. Raises UsageError."""
    from edgekit.errors import UsageError

    pattern, _, kind = text.rpartition("=")
    if not pattern or not kind:
        raise UsageError(
            f"{text!r} is no REGEX=TYPE",
            code="bad_tensor_type",
            hint=r"for example --tensor-type 'blk\.[0-3]\.ffn_down=Q6_K'",
        )
    return pattern, kind


def _check_wanted(wanted: Wanted, recipe_out: Path | None) -> None:
    """Refuse options that contradict each other. Raises UsageError."""
    from edgekit.errors import UsageError

    others: Sequence[tuple[str, object]] = (
        ("--filetype", wanted.filetype),
        ("--recipe", wanted.recipe),
        ("--tensor-type", wanted.tensor_types),
        ("--output-tensor-type", wanted.output),
        ("--token-embedding-type", wanted.embedding),
        ("--pure", wanted.pure),
    )
    named = [name for name, value in others if value]
    if wanted.target_bytes is not None and wanted.target_bpw is not None:
        clash = "--target-size and --target-bpw"
    elif wanted.searched and named:
        clash = f"a target size and {named[0]}"
    elif wanted.recipe is not None and wanted.filetype is not None:
        clash = "--recipe and --filetype"
    elif wanted.vision and (wanted.searched or wanted.imatrix or set(named) - {"--filetype"}):
        clash = "--vision and what chooses types for the language part"
    elif recipe_out is not None and not wanted.searched:
        raise UsageError(
            "there is no mix to write: no target was given",
            code="no_target",
            hint="pass --target-size or --target-bpw with --recipe-out",
        )
    else:
        return
    raise UsageError(f"{clash} exclude each other", code="options_clash", hint="leave one out")


def _check_free(target: Path, *, split: bool, force: bool) -> None:
    from edgekit.errors import CannotCreateError

    pieces = sorted(target.parent.glob(f"{glob.escape(target.stem)}-*-of-*{target.suffix}"))
    existing = [target] if target.exists() else pieces if split else []
    if existing and not force:
        raise CannotCreateError(
            f"{existing[0]} exists",
            code="destination_exists",
            hint="pass --force to replace it",
        )


def _predicted(source: Path, wanted: Wanted) -> tuple[str, int]:
    """Return the file type's name and tensor bytes, from config.json alone.

    Raises what `read_config` and the recipe raise, mapped by the command's border.
    """
    from edgekit.catalogue import find_filetype
    from edgekit.converter import overrides_of
    from edgekit.source import read_config
    from edgekit_quantize.recipe import weights_bytes

    if wanted.vision:
        return _predicted_vision(source, wanted.filetype or VISION_FILETYPE)
    config = read_config(source)
    if wanted.searched:
        if wanted.target_bytes is not None:
            return "mix", wanted.target_bytes
        assert wanted.target_bpw is not None
        return "mix", int(weights_bytes(config, "F32") / 32 * max(wanted.target_bpw, 0))
    named, overrides = overrides_of(wanted)
    kind = find_filetype(named or DEFAULT_FILETYPE).id
    imatrix = wanted.imatrix is not None
    return kind, weights_bytes(config, kind, imatrix=imatrix, overrides=overrides)


def _predicted_vision(source: Path, filetype: str) -> tuple[str, int]:
    from edgekit_quantize.checkpoint import Checkpoint
    from edgekit_quantize.mmproj import plan_vision
    from edgekit_quantize.tensor_types import find_file_type

    with Checkpoint(source) as checkpoint:
        plan = plan_vision(checkpoint, find_file_type(filetype))
    return filetype.upper(), plan.tensors[-1].offset + plan.tensors[-1].bytes
