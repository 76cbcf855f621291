"""The clients that we know: facts from TOML, where their files are, which of them are here."""

from __future__ import annotations

import glob
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from edgekit import paths
from edgekit.connect.values import Edit, Pick, Step, filled
from edgekit.errors import UsageError

Dialect = Literal["chat", "responses", "messages"]


@dataclass(frozen=True, slots=True)
class Setting:
    """One edit of a file, and the word that must be known for it to be made."""

    at: tuple[Step, ...]
    value: Any
    when: str | None


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A file of a client: its kind of text, where it is, what it must hold."""

    kind: str
    folder: str
    folder_env: str | None
    names: tuple[str, ...]
    when: str | None
    when_folder: str | None
    settings: tuple[Setting, ...]


@dataclass(frozen=True, slots=True)
class Client:
    """An editor or agent: how to find it, what to write, what it needs from a server."""

    id: str
    name: str
    commands: tuple[str, ...]
    found: tuple[str, ...]
    dialect: Dialect
    checks: tuple[str, ...]
    files: tuple[ConfigFile, ...]
    steps: tuple[str, ...]
    """What a person does where there is no file to write."""
    next: str | None
    key_step: str | None
    """How the key gets to a client whose file does not hold it."""
    asks_for_key: bool
    """It wants one even from a server without keys, so the step is always said."""
    key_env: str | None
    """What its file says to take the key from the environment."""
    fim_by_name: bool
    """It chooses fill-in-the-middle tokens by the model's id."""
    slim: str | None
    """What its settings save when `slim` is known."""
    min_ctx: int | None
    min_ctx_why: str

    @property
    def holds_key(self) -> bool:
        """Whether an API key would be written into a file."""
        return self.key_env is None and self.key_step is None and bool(self.files)


@dataclass(frozen=True, slots=True)
class FimFormat:
    """How clients write fill-in-the-middle prompts for models with these words in their ids."""

    words: tuple[str, ...]
    template: str
    zed: str | None
    continues: bool
    """Whether Continue has this rule too."""

    def prompt(self, prefix: str, suffix: str) -> str:
        """Return the text that a client sends to `/v1/completions`."""
        return filled(self.template, {"prefix": prefix, "suffix": suffix})  # type: ignore[no-any-return]


@cache
def clients() -> dict[str, Client]:
    """Return all clients by id, in the order of their names."""
    folder = _facts() / "clients"
    read = [_client(file) for file in sorted(folder.glob("*.toml"))]
    return {client.id: client for client in sorted(read, key=lambda c: c.name.lower())}


def find(name: str) -> Client:
    """Return a client by id. Raises UsageError that lists them."""
    known = clients()
    wanted = name.lower().replace("_", "-").replace(".", "-").replace(" ", "-")
    if wanted not in known:
        raise UsageError(
            f"there is no client {name!r}",
            code="no_such_client",
            hint=f"one of: {', '.join(known)}; any other client of OpenAI's API works as well",
        )
    return known[wanted]


@cache
def fim_formats() -> tuple[FimFormat, ...]:
    """Return how clients write fill-in-the-middle prompts, best match first."""
    raw = _raw(_facts() / "fim_formats.toml")
    return tuple(
        FimFormat(tuple(f["words"]), f["template"], f.get("zed"), f.get("continue", True))
        for f in raw["format"]
    )


def fim_format(model: str) -> FimFormat | None:
    """Return the format for a model's id; None if no client would know one."""
    name = model.lower().replace("code-llama", "codellama")
    return next((f for f in fim_formats() if all(word in name for word in f.words)), None)


def is_here(client: Client) -> str | None:
    """Return what shows that a client is installed: a command or a folder; None if nothing does."""
    for command in client.commands:
        at = shutil.which(command)
        if at:
            return at
    for pattern in client.found:
        matches = glob.glob(str(place(pattern)))
        if matches:
            return matches[0]
    return None


def place(text: str) -> Path:
    """Return a path from a fact, with the folders of this system and user filled in."""
    return Path(filled(text, _folders())).expanduser()


def path_of(file: ConfigFile) -> Path:
    """Return where a file is, or would be: the client's own variable counts first."""
    moved = os.environ.get(file.folder_env, "") if file.folder_env else ""
    folder = Path(moved).expanduser() if moved else place(file.folder)
    there = [folder / name for name in file.names if (folder / name).exists()]
    return there[0] if there else folder / file.names[0]


def edits_of(file: ConfigFile, words: Mapping[str, object], *, is_new: bool) -> list[Edit]:
    """Return the edits for a file; what needs a figure that is not known is left out."""
    known = {**words, "new": True if is_new else None}
    edits = []
    for setting in file.settings:
        if setting.when is not None and not known.get(setting.when):
            continue
        value = _known(filled(setting.value, known))
        if value is None:
            continue
        path = tuple(
            Pick(s.key, filled(s.value, known)) if isinstance(s, Pick) else filled(s, known)
            for s in setting.at
        )
        edits.append(Edit(path, value))
    return edits


def _known(value: Any) -> Any:
    """Drop members that are not known; a client has a default for them, we would guess."""
    if isinstance(value, dict):
        return {k: _known(v) for k, v in value.items() if v is not None}
    return [_known(item) for item in value] if isinstance(value, list) else value


def _folders() -> dict[str, object]:
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    app = {"darwin": "~/Library/Application Support", "win32": os.environ.get("APPDATA", "~")}
    base = app.get(sys.platform, config)
    editions = ["Code", "Code - Insiders", "VSCodium"]
    vscode = [f"{base}/{name}/User" for name in editions]
    there = [folder for folder in vscode if Path(folder).expanduser().is_dir()]
    return {
        "config": config,
        "app": base,
        "data": os.environ.get("XDG_DATA_HOME") or "~/.local/share",
        "vscode": (there or vscode)[0],
        "extensions": os.environ.get("VSCODE_EXTENSIONS") or "~/.vscode/extensions",
        "ours": str(paths.config_dir()),
    }


def _facts() -> Path:
    import edgekit_profiles

    return Path(edgekit_profiles.__file__).parent


def _raw(path: Path) -> dict[str, Any]:
    import tomllib

    return tomllib.loads(path.read_text("utf-8"))


def _client(path: Path) -> Client:
    raw = _raw(path)
    return Client(
        id=path.stem,
        name=raw["name"],
        commands=tuple(raw["commands"]),
        found=tuple(raw["found"]),
        dialect=raw["dialect"],
        checks=tuple(raw["checks"]),
        files=tuple(_file(entry) for entry in raw.get("files", ())),
        steps=tuple(raw.get("steps", ())),
        next=raw.get("next"),
        key_step=raw.get("key_step"),
        asks_for_key=raw.get("asks_for_key", False),
        key_env=raw.get("key_env"),
        fim_by_name=raw.get("fim_by_name", False),
        slim=raw.get("slim"),
        min_ctx=raw.get("min_ctx"),
        min_ctx_why=raw.get("min_ctx_why", ""),
    )


def _file(raw: dict[str, Any]) -> ConfigFile:
    return ConfigFile(
        kind=raw["kind"],
        folder=raw["folder"],
        folder_env=raw.get("folder_env"),
        names=tuple(raw["names"]),
        when=raw.get("when"),
        when_folder=raw.get("when_folder"),
        settings=tuple(_setting(entry) for entry in raw["set"]),
    )


def _setting(raw: dict[str, Any]) -> Setting:
    steps = tuple(s if isinstance(s, str) else Pick(*next(iter(s.items()))) for s in raw["at"])
    return Setting(steps, raw["value"], raw.get("when"))
