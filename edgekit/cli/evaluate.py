"""`edgekit evaluate` and `edgekit imatrix`: what a file lost, and where a model looks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import output
from edgekit.cli.options import Json

if TYPE_CHECKING:
    from edgekit.evaluation import Setting
    from edgekit.quality import Quality

Text = Annotated[Path | None, typer.Option(help="UTF-8 text. Default: the one edgekit ships.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Default: all cores.")]
ExtraBufts = Annotated[
    bool, typer.Option(help="Repacked weights; off where this build crashes in them.")
]
Layers = Annotated[int, typer.Option(min=0, help="Layers of the file on an accelerator.")]
Work = Annotated[Path | None, typer.Option(help="Folder for the unquantized GGUF of a checkpoint.")]


SHOWN = 4
"""Changed answers that are printed; --json has all."""


def register(app: typer.Typer) -> None:
    @app.command(short_help="Measure what a quantized GGUF lost.")
    def evaluate(
        file: Annotated[Path, typer.Argument(help="The quantized GGUF.")],
        base: Annotated[
            Path, typer.Option(help="Unquantized: checkpoint folder, GGUF, or a stored base.")
        ],
        text: Text = None,
        windows: Annotated[
            int | None, typer.Option(min=1, help="Windows of text to run. Default: all.")
        ] = None,
        window: Annotated[int, typer.Option(min=16, max=8192, help="Tokens of a window.")] = 512,
        canaries: Annotated[bool, typer.Option(help="Compare answers to 24 prompts too.")] = True,
        save_base: Annotated[
            Path | None, typer.Option(help="Keep what the unquantized model says, for next time.")
        ] = None,
        work: Work = None,
        threads: Threads = None,
        n_gpu_layers: Layers = 0,
        extra_bufts: ExtraBufts = True,
        json: Json = False,
    ) -> None:
        """Perplexity, KL divergence, weights and answers against the unquantized model.

        Example: edgekit evaluate model-Q4_K_M.gguf --base ./Mistral-Small-24B-Instruct-2501
        """
        from edgekit import evaluation, material
        from edgekit.evaluation import Setting

        prompts = material.canary_prompts() if canaries else ()
        trial = material.Trial(text or material.evaluation(), window, windows, prompts)
        for path in (file, base, trial.text):
            _present(path)
        with output.StepLines(quiet=json) as lines:
            lines.begin("evaluate", f"{file.name} against {base.name}")
            found = evaluation.evaluate(
                file,
                base,
                trial,
                _tried(file, Setting(extra_bufts, n_gpu_layers, threads)),
                work=work,
                stored=save_base,
                progress=lines.progress,
            )
            lines.end("evaluate", f"{file.name} against {base.name}")
        if json:
            from edgekit.quality import to_json

            output.emit(to_json(found))
        else:
            show(found)

    @app.command(short_help="Collect an importance matrix.")
    def imatrix(
        source: Annotated[Path, typer.Argument(help="Checkpoint folder or unquantized GGUF.")],
        destination: Annotated[
            Path | None, typer.Option("--output", help="Default: imatrix.gguf beside it.")
        ] = None,
        text: Text = None,
        chunks: Annotated[
            int | None, typer.Option(min=1, help="Windows of 512 tokens. Default: all.")
        ] = None,
        work: Work = None,
        threads: Threads = None,
        n_gpu_layers: Layers = 0,
        extra_bufts: ExtraBufts = True,
        force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
        json: Json = False,
    ) -> None:
        """Measure which inputs of each weight matter, for `edgekit quantize --imatrix`.

        Example: edgekit imatrix ./Mistral-Small-24B-Instruct-2501 --output mistral.imatrix.gguf
        """
        from edgekit import evaluation, material
        from edgekit.errors import CannotCreateError
        from edgekit.evaluation import Setting

        reads = text or material.calibration()
        for path in (source, reads):
            _present(path)
        place = source.resolve()
        target = destination or place.parent / f"{place.stem}.imatrix.gguf"
        if target.exists() and not force:
            raise CannotCreateError(
                f"{target} exists", code="destination_exists", hint="pass --force to replace it"
            )
        setting = Setting(extra_bufts, n_gpu_layers, threads)
        with output.StepLines(quiet=json) as lines:
            lines.begin("imatrix", source.name)
            found = evaluation.imatrix(
                source,
                target,
                text=reads,
                dataset=text.name if text else material.CALIBRATION_NAME,
                chunks=chunks,
                setting=_tried(source, setting),
                work=work,
                progress=lines.progress,
            )
            lines.end(
                "imatrix", f"{target.name}, {found['chunks']} chunks of {found['chunk_size']}"
            )
        if json:
            output.emit({"schema": "edgekit.imatrix/1", **found})
            return
        missed = found["experts_missed"]
        if isinstance(missed, dict) and missed:
            output.say(
                "Note", f"some experts of {len(missed)} tensors were never reached by the text"
            )


def show(found: Quality) -> None:
    """Print the figures of an evaluation."""
    divergence = found.divergence
    if divergence is not None:
        output.say(
            "KL",
            f"{_figure(divergence.kl)} ± {_figure(divergence.kl_error)} nats on average, "
            f"99.9 % below {_figure(divergence.kl_p999)}, at most {_figure(divergence.kl_max)}",
        )
        output.say(
            "PPL",
            f"{_figure(divergence.perplexity)}, unquantized {_figure(divergence.base_perplexity)}: "
            f"ratio {_figure(divergence.ratio)} ± {_figure(divergence.ratio_error)}",
        )
        top = "–" if divergence.same_top is None else f"{divergence.same_top:.1%}"
        output.say(
            "Choice", f"the same likeliest token in {top} of {divergence.positions:,} positions"
        )
    if found.prompts:
        output.say("Canaries", f"{found.unchanged}/{found.prompts} answers unchanged")
        for drift in found.drifts[:SHOWN]:
            output.say("", f"{drift.prompt}  {drift.before!r} → {drift.after!r}")
        if len(found.drifts) > SHOWN:
            output.say("", f"and {len(found.drifts) - SHOWN} more; --json shows all")
    if found.tensors:
        right = found.tensors - len(found.wrong)
        output.say("Weights", f"{right}/{found.tensors} tensors match the original")
        for wrong in found.wrong:
            error = "–" if wrong.error is None else f"{wrong.error:.0%}"
            output.say(
                "", f"{wrong.name} ({wrong.type}) is off by {error}, limit {wrong.limit:.1%}"
            )
    if found.note:
        output.say("Note", found.note)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _present(path: Path) -> None:
    from edgekit.errors import MissingInputError

    if not path.exists():
        raise MissingInputError(f"there is no {path}", code="file_missing", hint="check the path")


def _tried(file: Path, setting: Setting) -> Setting:
    """Return the setting that the engine survives on this file, by the canary."""
    from dataclasses import replace

    from edgekit.probe import run_canary

    if not setting.use_extra_bufts or not file.is_file():
        return setting
    canary = run_canary(file, n_gpu_layers=setting.n_gpu_layers)
    return replace(setting, use_extra_bufts=canary.use_extra_bufts is not False)
