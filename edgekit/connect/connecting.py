"""What to write for a client and this server, and what to warn of: decisions without effects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from edgekit.connect.clients import Client, ConfigFile, edits_of, fim_format, path_of, place
from edgekit.connect.files import Wanted
from edgekit.connect.server import Server
from edgekit.connect.values import filled
from edgekit.errors import UsageError

NO_KEY = "local"
"""What clients send that insist on a key, to a server that has none."""
MOST_OUTPUT = 4096


@dataclass(frozen=True, slots=True)
class Connection:
    """Everything that connecting a client means."""

    client: Client
    server: Server
    files: tuple[Wanted, ...]
    secret: str | None
    """The key, if it goes into a file."""
    steps: tuple[str, ...]
    """What is left to a person, in order."""
    warnings: tuple[str, ...]
    slim: str | None
    """What the client's prompts are shortened by, if they are."""


def connection(
    client: Client, server: Server, *, config: Path | None = None, is_full: bool = False
) -> Connection:
    """Decide what a client's files must hold.

    `config` stands for the client's first file; files of the same folder go beside it. `is_full`
    leaves out the settings that shorten the client's prompts.

    Raises UsageError for `config` where there is no file.
    """
    if config is not None and not client.files:
        raise UsageError(
            f"{client.name} has no file to write",
            code="no_config_file",
            hint="leave out --config; the steps are printed",
        )
    has_key = server.needs_key and server.key is not None
    places = _places(client, config)
    words = _words(client, server, has_key=has_key, is_full=is_full, places=places)
    files = []
    for file, path in zip(client.files, places, strict=True):
        if file.when is not None and not words.get(file.when):
            continue
        if file.when_folder is not None and not place(file.when_folder).is_dir():
            continue
        said = _quoted(words) if file.kind == "text" else words
        edits = edits_of(file, said, is_new=not path.exists())
        files.append(Wanted(path, file.kind, tuple(edits)))
    secret = server.key if has_key and client.holds_key else None
    return Connection(
        client,
        server,
        tuple(f for f in files if f.edits),
        secret,
        _steps(client, words, has_key=has_key),
        _warnings(client, server),
        None if is_full else client.slim,
    )


def _quoted(words: Mapping[str, object]) -> dict[str, object]:
    """Make the words safe between single quotes of vim: names come from a server."""
    return {k: v.replace("'", "''") if isinstance(v, str) else v for k, v in words.items()}


def _places(client: Client, config: Path | None) -> list[Path]:
    places = [path_of(file) for file in client.files]
    if config is None:
        return places
    first: ConfigFile = client.files[0]
    beside = [file.folder == first.folder for file in client.files]
    given = config.expanduser().absolute()
    return [
        given if number == 0 else given.parent / path.name if near else path
        for number, (path, near) in enumerate(zip(places, beside, strict=True))
    ]


def _words(
    client: Client, server: Server, *, has_key: bool, is_full: bool, places: list[Path]
) -> dict[str, object]:
    """Return what the placeholders of a client's facts stand for; None is not known."""
    size = server.model.n_ctx
    room = None if size is None else min(MOST_OUTPUT, size // 4)
    key = (server.key or "") if has_key else NO_KEY
    form = fim_format(server.fim.id) if server.fim else None
    words: dict[str, object] = {
        "url": server.url,
        "v1": f"{server.url}/v1",
        "model": server.model.id,
        "chat": True if server.chat else None,
        "fim": True if server.fim else None,
        "fim_model": server.fim.id if server.fim else server.model.id,
        "fim_format": form.zed if form else None,
        "n_ctx": size,
        "n_out": room,
        "n_in": None if size is None or room is None else size - room,
        "n_compact": None if size is None else size * 4 // 5,
        "n_ctx_text": None if size is None else str(size),
        "n_out_text": None if room is None else str(room),
        "key": client.key_env if has_key and client.key_env else key,
        "key_or_empty": key if has_key else "",
        "key_word": "your key" if has_key else NO_KEY,
        "has_key": has_key or None,
        "no_key": not has_key or None,
        "slim": not is_full or None,
        "now": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    return words | {f"file_{number}": str(path) for number, path in enumerate(places, 1)}


def _steps(client: Client, words: Mapping[str, object], *, has_key: bool) -> tuple[str, ...]:
    steps = list(client.steps)
    if client.key_step is not None and (has_key or client.asks_for_key):
        steps.append(client.key_step)
    if client.key_env is not None and has_key:
        steps.append("set EDGEKIT_API_KEY before you start it; the file does not hold the key")
    if client.next is not None:
        steps.append(client.next)
    return tuple(str(filled(step, {k: _said(v) for k, v in words.items()})) for step in steps)


def _said(word: object) -> str:
    return f"{word:,}" if isinstance(word, int) and not isinstance(word, bool) else str(word)


def _warnings(client: Client, server: Server) -> tuple[str, ...]:
    said, size = [], server.model.n_ctx
    if size is not None and client.min_ctx is not None and size < client.min_ctx:
        said.append(
            f"the context of {server.model.id} is {size:,} tokens for each conversation and "
            f"{client.name} needs {client.min_ctx:,}: {client.min_ctx_why}"
        )
    if size is None:
        said.append(f"the server does not say the context of {server.model.id}; it is not set")
    if server.chat is None and "chat" in client.checks:
        said.append("the server has no model that can chat")
    return tuple(said)
