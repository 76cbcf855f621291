"""Messages between the front and one engine child: 4-byte big-endian length, then msgpack.

front -> engine   Generate, Cancel, Tokenize, Stop
engine -> front   Hello (once, when ready), Accepted or Rejected (per Generate, before any
                  token), Step (one per engine step, all outputs of that step), Pulse (while
                  it works), Tokens, Fatal

Each message is a frozen dataclass; on the wire it is a two-item array [class name, fields].
The very first frame on a fresh socket is an `EngineConfig` in the same form, from the front.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Hashable
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgpack

from edgekit_server.config import EngineConfig
from edgekit_server.engine.parameters import Sampling as Sampling
from edgekit_server.errors import WireError

MAX_MESSAGE_BYTES = 256 * 1024 * 1024
HEADER = struct.Struct(">I")

Piece = tuple[str, bool]
"""Text to tokenize and whether control tokens in it are real (template) or text (user's)."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the answer must match. kind: json_schema, json_object, regex, choice, lark or gbnf."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Generate:
    id: int
    prompt: list[Piece] | list[int]
    max_tokens: int | None = None
    """None: up to the end of the context."""
    ignore_eos: bool = False
    cache_prompt: bool = True
    sampling: Sampling = field(default_factory=Sampling)
    grammar: Grammar | None = None
    speculate: bool = True
    """False: no drafts for this request, whatever the engine does by default."""
    deadline_s: float | None = None
    """Seconds from intake after which the request ends with finish `timeout`."""
    context_shift: bool = False
    """True: when the context is full, forget its middle and go on instead of ending."""


@dataclass(frozen=True, slots=True)
class Cancel:
    id: int


@dataclass(frozen=True, slots=True)
class Tokenize:
    id: int
    prompt: list[Piece]


@dataclass(frozen=True, slots=True)
class Stop:
    """Finish nothing, free the model, exit 0."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The loaded model, as the front needs it. Token texts are as rendered with specials."""

    model_id: str
    architecture: str | None
    description: str
    n_params: int
    size_bytes: int
    n_vocab: int
    n_ctx_train: int
    n_ctx: int
    n_ctx_seq: int
    """The most tokens, prompt and answer together, that one sequence may hold."""
    n_seq_max: int
    chat_template: str | None
    bos: str | None
    eos: str | None
    add_bos: bool
    fim: dict[str, str]
    """Texts of the FIM control tokens by role: prefix, suffix, middle; absent roles left out."""
    control_tokens: list[str]
    reasons: dict[str, str]
    """Each choice the engine made by itself, and why."""


@dataclass(frozen=True, slots=True)
class Accepted:
    id: int
    n_prompt: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """code: context_length_exceeded, queue_full, bad_token, empty_prompt, tokenizer_failed."""

    id: int
    code: str
    message: str
    n_prompt: int = 0


@dataclass(frozen=True, slots=True)
class TopToken:
    token: int
    text: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class Output:
    """What one request got in one step. `finish` is set on its last output only."""

    id: int
    tokens: list[int]
    pieces: list[tuple[bytes, bool]]
    """Bytes of each token and whether it is a control token. May split a UTF-8 character."""
    logprobs: list[TopToken] = field(default_factory=list)
    top_logprobs: list[list[TopToken]] = field(default_factory=list)
    finish: str | None = None
    """stop (end of generation), length, cancelled, timeout or error."""
    error: str | None = None
    n_cached: int | None = None
    """Prompt tokens taken from a resident prefix; on the first output only."""
    prefill_ms: float | None = None
    """Admission to first token; on the first output only."""
    n_drafted: int | None = None
    """Tokens guessed ahead, on the last output; None: guessing was off."""
    n_accepted: int | None = None
    """How many of them were right: each spared a step."""


@dataclass(frozen=True, slots=True)
class Step:
    outputs: list[Output]


@dataclass(frozen=True, slots=True)
class Pulse:
    """What the child has done so far, sent while it changes: see pulse.py and ../watchdog.py."""

    worked: int
    """Steps, and signs of life within them."""
    taken: int
    """Messages that the intake has dealt with."""
    n_steps: int = 0
    decode_s: float = 0.0
    """Time inside llama_decode since the start."""
    busy_s: float = 0.0
    """Time in whole steps since the start."""
    n_drafted: int = 0
    n_accepted: int = 0
    """Tokens guessed ahead since the start, and how many were right."""


@dataclass(frozen=True, slots=True)
class Tokens:
    id: int
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class Fatal:
    """The engine is about to exit: bad_model, out_of_memory, internal."""

    code: str
    message: str


Message = (
    Generate | Cancel | Tokenize | Stop | Hello
    | Accepted | Rejected | Step | Pulse | Tokens | Fatal
)  # fmt: skip

_KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in get_args(Message)}
_T = TypeVar("_T")


def encode(message: Message) -> bytes:
    """Return one frame: length and body. Raises WireError if it cannot be said (see _frame)."""
    return _frame(message)


def decode(body: bytes | memoryview) -> Message:
    """Rebuild a message from a frame's body; WireError on anything that is not one of ours."""
    name, values = _unpack(body)
    kind = _KINDS.get(name)
    if kind is None:
        raise WireError(f"unknown message {name!r}")
    message: Message = _build(kind, values)
    return message


def encode_config(config: EngineConfig) -> bytes:
    """Return the frame that opens a conversation with an engine child."""
    return _frame(config)


def decode_config(body: bytes | memoryview) -> EngineConfig:
    """Rebuild the settings from the body of the first frame."""
    name, values = _unpack(body)
    if name != "EngineConfig":
        raise WireError(f"the first message is {name!r}, not the settings")
    return _build(EngineConfig, values)


class Decoder:
    """Bytes in, messages out: the reading side for asyncio, which gets bytes in any pieces."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Take what arrived; return every message that is complete now, in order."""
        buffer = self._buffer
        buffer += data
        messages: list[Message] = []
        start = 0
        while len(buffer) - start >= HEADER.size:
            size = _check_size(HEADER.unpack_from(buffer, start)[0])
            end = start + HEADER.size + size
            if len(buffer) < end:
                break
            messages.append(decode(bytes(buffer[start + HEADER.size : end])))
            start = end
        del buffer[:start]
        return messages

    @property
    def pending_bytes(self) -> int:
        """Bytes of a message whose end has not come yet; not 0 at end of file: it was cut off."""
        return len(self._buffer)


def send(sock: socket.socket, message: Message) -> None:
    """Write one message to a blocking socket, whole. OSError when the other side is gone."""
    sock.sendall(encode(message))


def read_frame(sock: socket.socket) -> bytes | None:
    """Return the next frame's body from a blocking socket; None when the peer closed it.

    Raises WireError if the stream ends inside a frame or announces an impossible size.
    """
    header = _read_exactly(sock, HEADER.size)
    if not header:
        return None
    size = _check_size(HEADER.unpack(header)[0])
    body = _read_exactly(sock, size)
    if len(body) < size:
        raise WireError("the stream ended inside a message")
    return body


def receive(sock: socket.socket) -> Message | None:
    """Return the next message from a blocking socket; None when the peer closed it."""
    body = read_frame(sock)
    return None if body is None else decode(body)


def _read_exactly(sock: socket.socket, size: int) -> bytes:
    """Return `size` bytes, or b"" at a clean end. A reset counts as an end: the peer died."""
    data = bytearray()
    while len(data) < size:
        try:
            chunk = sock.recv(min(size - len(data), 1 << 20))
        except ConnectionResetError:
            chunk = b""
        if not chunk:
            if data:
                raise WireError("the stream ended inside a message")
            return b""
        data += chunk
    return bytes(data)


def _check_size(size: int) -> int:
    if not 0 < size <= MAX_MESSAGE_BYTES:
        raise WireError(f"a message of {size} bytes; the most is {MAX_MESSAGE_BYTES}")
    return size


def _frame(value: Message | EngineConfig) -> bytes:
    """Pack; WireError for text with lone surrogates, numbers beyond 64 bits, or too much."""
    try:
        body: bytes = msgpack.packb([type(value).__name__, _plain(value)], default=_plain)
    except (ValueError, OverflowError, TypeError) as error:
        raise WireError(f"{type(value).__name__} cannot be sent: {error}") from error
    return HEADER.pack(_check_size(len(body))) + body


def _plain(value: object) -> object:
    """Return what msgpack can pack: dataclass -> dict by field name, path -> text."""
    if isinstance(value, Path):
        return os.fsencode(value)  # a path is bytes: it need not be UTF-8
    if is_dataclass(value):
        return {name: getattr(value, name) for name in _field_names(cast(Hashable, type(value)))}
    raise TypeError(f"{type(value).__name__} has no form on the wire")


def _unpack(body: bytes | memoryview) -> tuple[str, dict[str, Any]]:
    try:
        item = msgpack.unpackb(body, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise WireError(f"not msgpack: {type(error).__name__}: {error}") from error
    match item:
        case [str(name), dict(values)]:
            return name, values
    raise WireError("a message is an array of a name and its fields")


@cache
def _field_names(kind: Hashable) -> tuple[str, ...]:
    return tuple(f.name for f in fields(cast(Any, kind)))


@cache
def _schema(key: Hashable) -> tuple[dict[str, Callable[[Any], Any]], frozenset[str]]:
    """Return a converter per field of a class, and the names that have no default."""
    kind = cast(Any, key)
    hints = get_type_hints(kind)
    converters = {f.name: _converter(hints[f.name], f.name) for f in fields(kind)}
    required = (
        f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING
    )
    return converters, frozenset(required)


def _build(kind: type[_T], values: dict[str, Any]) -> _T:
    converters, required = _schema(cast(Hashable, kind))
    if not required <= values.keys():
        raise WireError(f"{kind.__name__} lacks {', '.join(sorted(required - values.keys()))}")
    try:
        return kind(**{name: converters[name](value) for name, value in values.items()})
    except KeyError as error:
        raise WireError(f"{kind.__name__} has no field {error.args[0]!r}") from error


def _converter(hint: Any, name: str) -> Callable[[Any], Any]:
    """Return a function that checks a plain value against a type and gives it that type."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _union(args, name)
    if origin is list:
        item = _converter(args[0], name)
        return lambda value: [item(v) for v in _typed(value, list, name)]
    if origin is tuple:
        items = [_converter(arg, name) for arg in args]
        return lambda value: tuple(
            convert(v) for convert, v in _paired(items, _typed(value, list, name), name)
        )
    if origin is dict:
        key, item = (_converter(arg, name) for arg in args)
        return lambda value: {key(k): item(v) for k, v in _typed(value, dict, name).items()}
    if hint is float:
        return lambda value: float(_typed(value, (float, int), name))
    if hint is Path:
        return lambda value: Path(os.fsdecode(_typed(value, bytes, name)))
    if is_dataclass(hint) and isinstance(hint, type):
        return lambda value: _build(hint, _typed(value, dict, name))
    return lambda value: _typed(value, hint, name)


def _union(args: tuple[Any, ...], name: str) -> Callable[[Any], Any]:
    """First alternative that fits; an alternative None is tried first."""
    choices = [_converter(arg, name) for arg in args if arg is not NoneType]
    optional = NoneType in args

    def convert(value: Any) -> Any:
        if value is None and optional:
            return None
        for choice in choices[:-1]:
            try:
                return choice(value)
            except WireError:
                continue
        return choices[-1](value)

    return convert


def _typed(value: Any, kind: type | tuple[type, ...], name: str) -> Any:
    """Return the value if it has the type; a bool is not a number here."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise WireError(f"{name}: {type(value).__name__} is not what belongs there")
    return value


def _paired(
    items: list[Callable[[Any], Any]], values: list[Any], name: str
) -> list[tuple[Callable[[Any], Any], Any]]:
    if len(items) != len(values):
        raise WireError(f"{name}: {len(values)} items, not {len(items)}")
    return list(zip(items, values, strict=True))
