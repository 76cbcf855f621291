"""What a running server says about itself: its models, their context, what they can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from edgekit.connect.clients import fim_format
from edgekit.errors import BusyError, DeniedError, EngineFailedError, MissingInputError, UsageError

if TYPE_CHECKING:
    import httpx

DEFAULT_URL = "http://127.0.0.1:8484"
START = "start one: edgekit deploy MODEL or edgekit serve FILE.gguf; another address: --url URL"
_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Served:
    """A model of a server; None is what the server does not say."""

    id: str
    n_ctx: int | None
    """Tokens that one conversation may have."""
    has_fim: bool | None
    has_chat: bool | None


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answered, and the models that a client gets."""

    url: str
    """Its root, without /v1."""
    key: str | None
    needs_key: bool
    models: tuple[Served, ...]
    chat: Served | None
    fim: Served | None
    reason: str
    """Why these models."""

    @property
    def model(self) -> Served:
        """The model to test with: the one for chat, else the one for completion."""
        found = self.chat or self.fim
        assert found is not None
        return found


def root(url: str) -> str:
    """Return the root of an address that may end in /v1. Raises UsageError."""
    text = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(text)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise UsageError(
            f"{url!r} is no address of a server",
            code="bad_url",
            hint=f"write it like {DEFAULT_URL}",
        )
    return text.rstrip("/").removesuffix("/v1").rstrip("/")


def client_for(url: str, key: str | None, timeout_s: float = _TIMEOUT_S) -> httpx.Client:
    """Return an HTTP client for a server's root; never through a proxy of the environment."""
    import httpx

    headers = {"authorization": f"Bearer {key}"} if key else {}
    # Plain HTTP has nothing to verify, and reading the certificates takes a tenth of a second.
    verify = not url.startswith("http://")
    return httpx.Client(
        base_url=url, headers=headers, timeout=timeout_s, trust_env=False, verify=verify
    )


def ask(url: str, key: str | None, wanted: str | None) -> Server:
    """Ask a server for its models and choose.

    Raises:
        EngineFailedError: nothing answers there, or something else than such a server.
        DeniedError: it wants another key.  BusyError: it is still loading.
        MissingInputError: it does not serve the model that is wanted.
    """
    import httpx

    with client_for(url, key) as http:
        try:
            response = http.get("/v1/models")
            anonymous = http.get("/v1/models", headers={"authorization": ""})
        except httpx.HTTPError as error:
            raise EngineFailedError(
                f"no server answers at {url} ({type(error).__name__})",
                code="server_unreachable",
                hint=START,
            ) from None
        rows = _rows(url, response)
        models = tuple(_with_fim(http, _served(row)) for row in rows)
    if not models:
        raise EngineFailedError(f"{url} serves no model", code="no_models", hint=START)
    names = {n: m for m, row in zip(models, rows, strict=True) for n in _names(row)}
    if wanted is not None and wanted not in names:
        raise MissingInputError(
            f"{url} serves no model {wanted!r}",
            code="no_such_model",
            hint=f"it serves: {', '.join(m.id for m in models)}",
        )
    picked = names[wanted] if wanted is not None else None
    chat, fim, reason = choose(models, picked)
    needs_key = anonymous.status_code in (401, 403)
    return Server(url, key, needs_key, models, chat, fim, reason)


def choose(
    models: tuple[Served, ...], wanted: Served | None
) -> tuple[Served | None, Served | None, str]:
    """Return the model for chat, the one for completion, and why."""
    chats = [m for m in models if m.has_chat is not False]
    fims = [m for m in models if m.has_fim]
    chat = wanted or (chats[0] if chats else None)
    fim = chat if chat in fims else (fims[0] if fims else None)
    if len(fims) > 1 and wanted is None:
        # The one beside the chat model is there for this: it is smaller and less busy.
        fim = next((m for m in fims if m is not chat), fim)
    if wanted is not None:
        reason = f"{wanted.id} as asked"
    elif len(models) == 1:
        reason = "the only model served"
    else:
        reason = f"the first of {len(models)} that can chat" if chat else "none can chat"
    if fim is not None and fim is not chat:
        reason += f"; {fim.id} completes code"
    return chat, fim, reason


def _rows(url: str, response: httpx.Response) -> list[Mapping[str, Any]]:
    if response.status_code in (401, 403):
        raise DeniedError(
            f"{url} refuses this key" if response.request.headers.get("authorization") else
            f"{url} wants an API key",
            code="key_refused",
            hint="set EDGEKIT_API_KEY, or pass --api-key KEY",
        )  # fmt: skip
    if response.status_code == 503:
        raise BusyError(
            f"{url} is not ready", code="server_loading", hint="wait until it has loaded its model"
        )
    try:
        data = response.raise_for_status().json()["data"]
        if not isinstance(data, list) or not all(
            isinstance(row, dict) and row["id"] and str(row["id"]).isprintable() for row in data
        ):
            raise ValueError
    except Exception:
        raise EngineFailedError(
            f"what answers at {url} is no such server (HTTP {response.status_code} for /v1/models)",
            code="not_a_server",
            hint=START,
        ) from None
    return data


def _names(row: Mapping[str, Any]) -> list[str]:
    aliases = row.get("aliases")
    return [str(row["id"]), *(map(str, aliases) if isinstance(aliases, list) else ())]


def _served(row: Mapping[str, Any]) -> Served:
    meta = row.get("meta") if isinstance(row.get("meta"), dict) else {}
    assert isinstance(meta, dict)
    sizes = (row.get("context_length"), row.get("max_model_len"), meta.get("n_ctx"))
    n_ctx = next((n for n in sizes if isinstance(n, int) and n > 0), None)
    said, roles = _words(row.get("capabilities")), _words(row.get("roles"))
    has_chat = None if said is None else "chat" in said
    has_fim = None if said is None else "fim" in said
    if roles is not None:
        # What it is there for narrows what it could do.
        has_chat = has_chat if "chat" in roles else False
        has_fim = has_fim if "completion" in roles else False
    if has_fim is None and _status(row) not in (None, "loaded"):
        # Asking would load it. Its name says what clients will send.
        has_fim = fim_format(str(row["id"])) is not None
    return Served(str(row["id"]), n_ctx, has_fim, has_chat)


def _words(said: object) -> set[str] | None:
    return {str(word) for word in said} if isinstance(said, list) else None


def _status(row: Mapping[str, Any]) -> object:
    status = row.get("status")
    return status.get("value") if isinstance(status, dict) else None


def _with_fim(http: httpx.Client, model: Served) -> Served:
    """Find out by asking where the server does not say whether a model fills in the middle."""
    import httpx

    if model.has_fim is not None:
        return model
    body = {"model": model.id, "prompt": "a = ", "suffix": "\n", "max_tokens": 1}
    try:
        status = http.post("/v1/completions", json=body).status_code
    except httpx.HTTPError:
        return model
    has_fim = True if status == 200 else False if status in (400, 501) else None
    return Served(model.id, model.n_ctx, has_fim, model.has_chat)
