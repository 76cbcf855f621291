"""The command line: parse, call one function, print, exit. The only code that prints.

Each command group is a module of this package with a `register(app)`; whatever a command needs is
imported inside it, so that `edgekit --help` stays quick.
"""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import typer

from edgekit import __version__
from edgekit.cli import bench, deploy, doctor, fit, models, probe, quantize, serve
from edgekit.cli.output import fail
from edgekit.errors import ConfigError, EdgekitError, UsageError, from_foreign

HELP = """Deploy open-weight language models on your own hardware, with or without a network.

    edgekit deploy pocket             prove this installation, end to end
    edgekit fit mistral-3-small       what fits this machine, and why
"""


def build() -> typer.Typer:
    """Return the whole command line as an object; nothing is run."""
    app = typer.Typer(
        help=HELP,
        no_args_is_help=True,
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
        version: bool = typer.Option(False, "--version", help="Print the version.", is_eager=True),
    ) -> None:
        if version:
            print(f"edgekit {__version__}")
            raise typer.Exit

    for module in (deploy, fit, probe, models, quantize, serve, bench, doctor):
        module.register(app)
    return app


def settings() -> dict[str, Any]:
    """Return the defaults of config.toml, the user's over the system's: one table per command.

    Raises ConfigError when a file cannot be read as TOML.
    """
    from edgekit import paths

    found: dict[str, Any] = {}
    for folder in dict.fromkeys((Path("/etc/edgekit"), paths.config_dir())):
        file = folder / "config.toml"
        try:
            tables = tomllib.loads(file.read_text())
        except FileNotFoundError:
            continue
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(
                f"{file}: {error}", code="bad_config_file", hint="mend the file or move it away"
            ) from error
        for command, table in tables.items():
            if not isinstance(table, dict):
                raise ConfigError(
                    f"{file}: {command} must be a table such as [deploy]",
                    code="bad_config_file",
                    hint="put options under the name of their command",
                )
            options = {key.replace("-", "_"): value for key, value in table.items()}
            found.setdefault(command, {}).update(options)
    return found


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; every failure becomes a sentence and a hint."""
    as_json = "--json" in arguments
    debug = "--debug" in arguments or "EDGEKIT_DEBUG" in os.environ
    arguments = [a for a in arguments if a != "--debug"]
    command = typer.main.get_command(build())
    try:
        code = command.main(
            arguments, prog_name="edgekit", standalone_mode=False, default_map=settings()
        )
    except EdgekitError as error:
        if debug:
            raise
        return fail(error, as_json=as_json)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; run the same command to go on\n")
        return 130
    except BrokenPipeError:
        # The reader of our output went away; that is not a failure of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            return fail(_usage(error), as_json=as_json)
        if type(error).__name__ == "Abort":
            return 130
        return fail(from_foreign(error), as_json=as_json)
    return code if isinstance(code, int) else 0


def _usage(error: Exception) -> UsageError:
    """Turn the parser's complaint into one of ours."""
    where = getattr(getattr(error, "ctx", None), "command_path", "edgekit")
    message: str = error.format_message()  # type: ignore[attr-defined]
    return UsageError(message, code="usage", hint=f"{where} --help")
