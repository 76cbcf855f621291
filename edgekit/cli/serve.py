"""`edgekit serve`: one GGUF on an OpenAI-compatible endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli.options import DEFAULT_USERS

Keys = Annotated[
    list[str] | None, typer.Option("--api-key", help="Key that clients must send; repeatable.")
]
Host = Annotated[str, typer.Option(help="Address to listen on; others than loopback need a key.")]
Port = Annotated[int, typer.Option(min=1, max=65535)]


def register(app: typer.Typer) -> None:
    @app.command()
    def serve(
        file: Annotated[Path, typer.Argument(help="A GGUF file.")],
        model_id: Annotated[str | None, typer.Option(help="Name that clients ask for.")] = None,
        host: Host = "127.0.0.1",
        port: Port = 8484,
        api_key: Keys = None,
        ctx: Annotated[int, typer.Option(min=256, help="Context shared by all users.")] = 8192,
        users: Annotated[int, typer.Option(min=1, max=256)] = DEFAULT_USERS,
        gpu_layers: Annotated[int, typer.Option(help="Layers on the GPU; -1 is all.")] = -1,
        threads: Annotated[int | None, typer.Option(min=1)] = None,
        extra_bufts: Annotated[
            bool, typer.Option(help="Repacked and AMX weights; off for a build that crashes.")
        ] = True,
        until_stdin_closes: Annotated[
            bool, typer.Option("--until-stdin-closes", hidden=True)
        ] = False,
    ) -> None:
        """Serve a GGUF file until Ctrl-C.

        Example: edgekit serve model.gguf --ctx 32768 --users 4
        """
        import sys

        from edgekit_server import EngineConfig, ServeConfig
        from edgekit_server import serve as run

        config = ServeConfig(
            engine=EngineConfig(
                model_path=file,
                model_id=model_id or file.stem,
                n_ctx=ctx,
                n_seq_max=users,
                n_gpu_layers=gpu_layers,
                n_threads=threads,
                use_extra_bufts=extra_bufts,
            ),
            host=host,
            port=port,
            api_keys=tuple(api_key or ()),
        )
        if until_stdin_closes:
            _stop_with_parent()
        run(config, on_ready=lambda url: sys.stderr.write(f"ready on {url}/v1\n"))


def _stop_with_parent() -> None:
    """End this process when standard input ends, that is, when whoever started it is gone."""
    import os
    import signal
    import sys
    import threading

    def watch() -> None:
        while sys.stdin.buffer.read(4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
