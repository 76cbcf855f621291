"""`edgekit serve`: GGUF files on one endpoint."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import output
from edgekit.cli.options import DEFAULT_USERS, Host, Json, Offline, Port, keys_option
from edgekit.units import GIB, MIB

if TYPE_CHECKING:
    from edgekit_server import EngineConfig
    from edgekit_server.config import Notice


def register(app: typer.Typer) -> None:
    @app.command(short_help="Serve GGUF files.")
    def serve(
        file: Annotated[list[Path], typer.Argument(help="GGUF files; each is a model.")],
        model_id: Annotated[
            list[str] | None,
            typer.Option(help="Name that clients ask for; one per file."),
        ] = None,
        role: Annotated[
            list[str] | None,
            typer.Option(help="NAME=chat, completion, embeddings or rerank."),
        ] = None,
        pin: Annotated[list[str] | None, typer.Option(help="Model that stays loaded.")] = None,
        memory_budget: Annotated[
            float | None,
            typer.Option(min=0.1, help="GiB for loaded models; a new one unloads others."),
        ] = None,
        idle_unload: Annotated[
            float | None,
            typer.Option(min=0.1, help="Minutes until an unused one is unloaded."),
        ] = None,
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
        offline: Offline = False,
        json: Json = False,
    ) -> None:
        """Serve GGUF files until Ctrl-C; all but the first load on demand.

        Example: edgekit serve model.gguf --ctx 32768 --users 4
        """
        del offline  # the option itself cut this process off
        import logging
        import sys

        from edgekit.preflight import check_endpoint, check_installed
        from edgekit.several import named, roles_of
        from edgekit.store_use import in_use

        keys = tuple(api_key or ())
        names = names_of(file, model_id or (), one_only=bool(draft_model or adapter))
        roles = roles_of(role or (), names)
        pinned = named(pin or (), names, "--pin")
        check_endpoint(host, port, keys)
        check_installed("fastapi", "uvicorn", "llama_cpp")
        notices = {path: notice_for(path) for path in file}
        from edgekit_server import EngineConfig, ServeConfig
        from edgekit_server import serve as run
        from edgekit_server.config import Adapter, ModelConfig

        engines = [
            EngineConfig(
                model_path=path,
                model_id=name,
                n_ctx=ctx,
                n_seq_max=users,
                n_gpu_layers=gpu_layers,
                n_threads=threads,
                use_extra_bufts=extra_bufts
                and (not canary or survives_extra_bufts(path, gpu_layers)),
                kv_mode=kv_mode,
                host_cache_bytes=host_cache_mib * MIB,
                disk_cache=disk_cache,
                speculation="draft" if draft_model else "auto",
                draft_model=draft_model,
                adapters=tuple(Adapter(path.stem, path) for path in adapter or ()),
            )
            for path, name in zip(file, names, strict=True)
        ]
        config = ServeConfig(
            engine=engines[0],
            host=host,
            port=port,
            api_keys=keys,
            models=tuple(
                ModelConfig(
                    engine,
                    roles=roles.get(engine.model_id, ()),
                    pinned=engine.model_id in pinned,
                    notice=notices[path],
                    memory_bytes=None if memory_budget is None else bytes_of(engine),
                )
                for path, engine in zip(file, engines, strict=True)
            ),
            memory_budget_bytes=None if memory_budget is None else round(memory_budget * GIB),
            idle_unload_s=None if idle_unload is None else idle_unload * 60,
        )
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")

        def ready(url: str) -> None:
            if json:
                record: dict[str, object] = {"schema": "edgekit.serve/1", "url": f"{url}/v1"}
                output.emit({**record, "model": names[0], "models": names})
            else:
                sys.stderr.write(f"ready on {url}/v1 · Ctrl-C stops\n")

        with contextlib.ExitStack() as held:
            for path in file:
                held.enter_context(in_use(path))
            run(config, on_ready=ready)


def names_of(files: Sequence[Path], given: Sequence[str], *, one_only: bool) -> list[str]:
    """Return a name for each file: the one given, else the file's own.

    Raises MissingInputError for a file that is not there, UsageError for names that do not fit
    the files, or several files where `one_only` is allowed.
    """
    from edgekit.errors import MissingInputError, UsageError

    for path in files:
        if not path.is_file():
            raise MissingInputError(
                f"there is no file {path}",
                code="model_missing",
                hint="edgekit quantize makes one from a checkpoint, edgekit deploy does it all",
            )
    if one_only and len(files) > 1:
        raise UsageError(
            "--draft-model and --adapter belong to one model, and several files are given",
            code="one_model_only",
            hint="serve that model on a port of its own",
        )
    if len(given) > len(files):
        raise UsageError(f"{len(given)} names for {len(files)} files", code="too_many_names")
    names = [*given, *(_name_of(path) for path in files[len(given) :])]
    if len(set(names)) < len(names):
        raise UsageError(
            f"two models would have the same name: {', '.join(names)}",
            code="same_name",
            hint="give each file a name, in order: --model-id A --model-id B",
        )
    return names


def notice_for(file: Path) -> Notice | None:
    """Say on standard error what a file's licence asks; return it for /licence.

    Raises DeniedError for a model of the catalogue that may not be used here.
    """
    import sys

    from edgekit import paths
    from edgekit.licence_policy import check_allowed
    from edgekit.licence_served import card_of, notice_of_entry, own_words
    from edgekit.store import Store

    store = Store(paths.store_dir())
    known = card_of(file, store)
    if known is None:
        found = own_words(file)
    else:
        card, entry = known
        for text in check_allowed(card, paths.data_dir(), paths.config_dir()):
            sys.stderr.write(f"warning: {text}\n")
        found = notice_of_entry(card, entry, store, None, paths.data_dir())
    if found is not None:
        shown = f"; show {found.shown}" if found.shown else ""
        sys.stderr.write(f"licence of {file.name}: {found.licence}{shown}\n")
    return found


def _name_of(path: Path) -> str:
    """The file's name, for a split model without the number of its first file."""
    return re.sub(r"-\d{5}-of-\d{5}$", "", path.stem)


def bytes_of(engine: EngineConfig) -> int:
    """Ask the engine what a model takes while loaded: its buffers and its process.

    Raises what `dry_load` raises.
    """
    from edgekit.budget import host_overhead
    from edgekit.dryload import dry_load

    found = dry_load(
        engine.model_path,
        n_ctx=engine.n_ctx,
        n_seq_max=engine.n_seq_max,
        n_gpu_layers=engine.n_gpu_layers,
        use_extra_bufts=engine.use_extra_bufts,
    )
    buffers = sum(found.weights.values()) + found.kv + sum(found.compute.values()) + found.output
    return buffers + engine.host_cache_bytes + host_overhead(0)


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
