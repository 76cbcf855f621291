"""The command line: parse, call one function, print, exit. The only code that prints.

Each command group is a module of this package with a `register(app)`; whatever a command needs is
imported inside it, so that `edgekit --help` stays quick.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

import typer
from typer.core import TyperGroup

from edgekit import __version__, egress
from edgekit.cli import (
    bench,
    bundle,
    buy,
    compare,
    connect,
    deploy,
    doctor,
    engine,
    evaluate,
    fit,
    licence,
    models,
    probe,
    pull,
    quantize,
    serve,
    store,
)
from edgekit.cli.output import fail
from edgekit.errors import EdgekitError, UsageError, from_foreign

HELP = """Deploy open-weight language models on your own hardware, with or without a network.

    edgekit deploy pocket             prove this installation, end to end
    edgekit fit mistral-3-small       what fits this machine, and why
"""
INTERRUPTED = 128 + signal.SIGINT
MODULES = (
    deploy,
    fit,
    compare,
    buy,
    probe,
    models,
    pull,
    store,
    licence,
    quantize,
    evaluate,
    serve,
    bundle,
    connect,
    bench,
    engine,
    doctor,
)


def build() -> typer.Typer:
    """Return the whole command line as an object; nothing is run."""
    app = typer.Typer(
        help=HELP,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={
            "help_option_names": ["-h", "--help"],
            "auto_envvar_prefix": "EDGEKIT",
            "max_content_width": 100,
        },
    )

    @app.callback()
    def edgekit(
        version: bool = typer.Option(
            False, "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
        debug: bool = typer.Option(False, "--debug", help="Show tracebacks. Works anywhere."),
    ) -> None:
        # Both are taken before this is reached: by the callback, and by `run` wherever it stands.
        del version, debug

    for module in MODULES:
        module.register(app)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"edgekit {__version__}")
        raise typer.Exit


def command_line() -> TyperGroup:
    """Return the parser, with what all commands share said once and not at each option."""
    group = typer.main.get_command(build())
    assert isinstance(group, TyperGroup)
    for option in group.params:
        option.show_envvar = False  # type: ignore[attr-defined]
        # Typer's own two would answer to EDGEKIT_SHOW_COMPLETION in every command.
        option.allow_from_autoenv = False  # type: ignore[attr-defined]
    for name, command in group.commands.items():
        for option in command.params:
            option.show_envvar = False  # type: ignore[attr-defined]
        command.epilog = (
            f"Each option has a twin in the environment, such as EDGEKIT_{name.upper()}_JSON, and "
            f"in the table [{name}] of config.toml."
        )
    return group


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; every failure becomes a sentence and a hint."""
    from edgekit.cli.settings import read_settings

    debug = "--debug" in arguments or os.environ.get("EDGEKIT_DEBUG", "") not in ("", "0")
    arguments = [a for a in arguments if a != "--debug"]
    as_json = wants_json(arguments)
    terminated: list[int] = []

    def terminate(number: int, _frame: FrameType | None) -> None:
        # The same way out as Ctrl-C, so that children and partial files are put away.
        terminated.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    try:
        command = command_line()
        with egress.bounded():
            # With the environment's word for commands that have no such option.
            egress.follow()
            code = command.main(
                arguments or ["--help"],
                prog_name="edgekit",
                standalone_mode=False,
                default_map=read_settings(command),
            )
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except (BrokenPipeError, SystemExit) as error:
        # The parser turns a broken pipe into an exit with 1, and leaves this cause.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        # The reader of our output went away; that is not a failure of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except Exception as error:
        if type(error).__name__ != "Abort":
            if debug:
                raise
            return fail(_ours(error), as_json=as_json)
        code = INTERRUPTED
    # The parser turns Ctrl-C into this code, older versions of it into Abort.
    if code == INTERRUPTED:
        sys.stderr.write("stopped; run the same command to go on\n")
        return 128 + signal.SIGTERM if terminated else INTERRUPTED
    return code if isinstance(code, int) else 0


def wants_json(arguments: list[str]) -> bool:
    """Say whether a failure is to be printed as JSON, also when the options cannot be parsed."""
    if "--json" in arguments:
        return True
    command = next((a for a in arguments if not a.startswith("-")), "")
    twin = os.environ.get(f"EDGEKIT_{command.upper()}_JSON", "")
    return twin.lower() in ("1", "true", "t", "yes", "y", "on")


def _ours(error: Exception) -> EdgekitError:
    if isinstance(error, EdgekitError):
        return error
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        # The parser's complaint.
        where = getattr(getattr(error, "ctx", None), "command_path", "edgekit")
        message = str(error.format_message()).replace("\n", " ").strip().rstrip(".")
        return UsageError(message, code="usage", hint=f"{where} --help shows what there is")
    return from_foreign(error)
