"""`edgekit serve`: one GGUF on an OpenAI-compatible endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import output
from edgekit.cli.options import DEFAULT_USERS, Host, Json, Port, keys_option
from edgekit.units import MIB


def register(app: typer.Typer) -> None:
    @app.command(short_help="Serve a GGUF file.")
    def serve(
        file: Annotated[Path, typer.Argument(help="A GGUF file.")],
        model_id: Annotated[str | None, typer.Option(help="Name that clients ask for.")] = None,
        host: Host = "127.0.0.1",
        port: Port = 8484,
        api_key: Annotated[list[str] | None, keys_option("SERVE")] = None,
        ctx: Annotated[int, typer.Option(min=256, help="Context shared by all users.")] = 8192,
        users: Annotated[int, typer.Option(min=1, max=256)] = DEFAULT_USERS,
        gpu_layers: Annotated[int, typer.Option(help="Layers on the GPU; -1 is all.")] = -1,
        threads: Annotated[int | None, typer.Option(min=1)] = None,
        extra_bufts: Annotated[
            bool, typer.Option(help="Repacked and AMX weights; off for a build that crashes.")
        ] = True,
        kv_mode: Annotated[
            str, typer.Option(help="unified: one KV memory for all; streams: a share each; auto.")
        ] = "auto",
        host_cache_mib: Annotated[
            int, typer.Option(min=0, help="RAM for the KV of conversations that lost their place.")
        ] = 0,
        disk_cache: Annotated[
            Path | None,
            typer.Option(help="Folder that keeps such KV over restarts; it holds your prompts."),
        ] = None,
        draft_model: Annotated[
            Path | None,
            typer.Option(help="A small GGUF of the same vocabulary that guesses ahead."),
        ] = None,
        adapter: Annotated[
            list[Path] | None, typer.Option(help="A LoRA adapter as GGUF; may be given repeatedly.")
        ] = None,
        canary: Annotated[
            bool, typer.Option(help="First decode a few tokens in a child, to find a bad build.")
        ] = True,
        json: Json = False,
    ) -> None:
        """Serve a GGUF file until Ctrl-C.

        Example: edgekit serve model.gguf --ctx 32768 --users 4
        """
        import logging
        import sys

        from edgekit.errors import MissingInputError
        from edgekit.preflight import check_endpoint, check_installed

        keys, name = tuple(api_key or ()), model_id or file.stem
        if not file.is_file():
            raise MissingInputError(
                f"there is no file {file}",
                code="model_missing",
                hint="edgekit quantize makes one from a checkpoint, edgekit deploy does it all",
            )
        check_endpoint(host, port, keys)
        check_installed("fastapi", "uvicorn", "llama_cpp")
        if canary and extra_bufts:
            extra_bufts = survives_extra_bufts(file, gpu_layers)
        from edgekit_server import EngineConfig, ServeConfig
        from edgekit_server import serve as run
        from edgekit_server.config import Adapter

        config = ServeConfig(
            engine=EngineConfig(
                model_path=file,
                model_id=name,
                n_ctx=ctx,
                n_seq_max=users,
                n_gpu_layers=gpu_layers,
                n_threads=threads,
                use_extra_bufts=extra_bufts,
                kv_mode=kv_mode,
                host_cache_bytes=host_cache_mib * MIB,
                disk_cache=disk_cache,
                speculation="draft" if draft_model else "auto",
                draft_model=draft_model,
                adapters=tuple(Adapter(path.stem, path) for path in adapter or ()),
            ),
            host=host,
            port=port,
            api_keys=keys,
        )
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")

        def ready(url: str) -> None:
            if json:
                output.emit({"schema": "edgekit.serve/1", "url": f"{url}/v1", "model": name})
            else:
                sys.stderr.write(f"ready on {url}/v1 · Ctrl-C stops\n")

        run(config, on_ready=ready)


def survives_extra_bufts(file: Path, gpu_layers: int) -> bool:
    """Try the engine on the file; return whether it works with its extra buffers.

    Raises EngineFailedError when it dies with and without them.
    """
    import sys

    from edgekit.errors import EngineFailedError
    from edgekit.probe import run_canary

    found = run_canary(file, n_gpu_layers=gpu_layers)
    if found.ok is False:
        raise EngineFailedError(
            f"the engine does not run this file here: {found.reason}",
            code="canary_failed",
            hint="edgekit doctor says what is wrong with the engine and how to mend it",
        )
    if found.use_extra_bufts is False:
        sys.stderr.write(f"warning: {found.reason}; serving without them, slower\n")
    # A file that the canary refuses is for the server to speak about.
    return found.use_extra_bufts is not False
