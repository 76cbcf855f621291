"""Messages between the front and one engine child: 4-byte big-endian length, then msgpack.

front -> engine   Generate, Cancel, Tokenize, Embed, Stop
engine -> front   Hello (once, when ready), Accepted or Rejected (per Generate, before any
                  token), Step (one per engine step, all outputs of that step), Pulse (while
                  it works), Tokens, Embedded, Fatal

Each message is a frozen dataclass; on the wire it is a two-item array [class name, fields].
The very first frame on a fresh socket is an `EngineConfig` in the same form, from the front.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from typing import Any, get_args

import msgpack

from edgekit_server.config import EngineConfig
from edgekit_server.engine.packing import build, plain
from edgekit_server.engine.parameters import Sampling as Sampling
from edgekit_server.engine.vectors import AdapterInfo as AdapterInfo
from edgekit_server.engine.vectors import Embed as Embed
from edgekit_server.engine.vectors import Embedded as Embedded
from edgekit_server.engine.vectors import Vectors as Vectors
from edgekit_server.errors import WireError

GRAMMAR_FAILED = "grammar: "
"""How the error of an Output begins whose grammar has got beyond its limits."""
MAX_MESSAGE_BYTES = 256 * 1024 * 1024
HEADER = struct.Struct(">I")

Piece = tuple[str, bool]
"""Text to tokenize and whether control tokens in it are real (template) or text (user's)."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the answer must match. kind: json_schema, json_object, regex, choice, lark or gbnf."""

    kind: str
    text: str
    param: str | None = None
    """The client's field that it came from, to name in a refusal."""
    schemas: list[tuple[str, str]] = field(default_factory=list)
    """Client's field and JSON schema, for each of @s0, @s1, ... in a Lark text."""
    lead: list[int] = field(default_factory=list)
    """Control tokens around reasoning before the answer: [end], where it is open already, or
    [start, end], where the answer may begin with it."""
    lead_rule: str = ""
    """Instead of `lead`: a Lark text whose start says what may go before @answer."""
    lenient: bool = False
    """Nobody asked for it: a schema that cannot be held becomes any object, and a grammar that
    cannot be held, free text."""


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
    whole: bool = False
    """True: nobody reads the answer before its end, so its outputs may come in lots."""
    context_shift: bool = False
    """True: when the context is full, forget its middle and go on instead of ending."""
    lora: list[tuple[int, float]] | None = None
    """Adapter ids and scales, all others off; None: every adapter at its own scale."""


@dataclass(frozen=True, slots=True)
class Cancel:
    id: int


@dataclass(frozen=True, slots=True)
class Tokenize:
    """Text to ids; or ids, to be checked and looked up."""

    id: int
    prompt: list[Piece] | list[int]
    pieces: bool = False
    """Whether the bytes of each token are wanted as well."""


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
    """Texts of the FIM control tokens by role: prefix, suffix, middle, and pad, repo and sep
    around the files of a repository; absent roles left out. See fimroles.py."""
    control_tokens: list[str]
    reasons: dict[str, str]
    """Each choice the engine made by itself, and why."""
    control_ids: dict[str, int] = field(default_factory=dict)
    """The id of each control token's text, for grammars."""
    generates: bool = True
    """False: an encoder, which answers Embed only."""
    vectors: Vectors | None = None
    adapters: list[AdapterInfo] = field(default_factory=list)
    basename: str | None = None
    """The model's name without size and version, where the file says it."""
    n_embd: int | None = None
    """Values of a token's embedding."""
    pads_text: bool = False
    """Whether a text gets a space in front, after a control token too (SentencePiece)."""


@dataclass(frozen=True, slots=True)
class Accepted:
    id: int
    n_prompt: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """code: context_length_exceeded, queue_full, bad_token, empty_prompt, tokenizer_failed,
    invalid_grammar."""

    id: int
    code: str
    message: str
    n_prompt: int = 0
    param: str | None = None
    """The client's field at fault, where the engine knows it."""


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
    pieces: list[bytes] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Fatal:
    """The engine is about to exit: bad_model, out_of_memory, internal."""

    code: str
    message: str


Message = (
    Generate | Cancel | Tokenize | Embed | Stop | Hello
    | Accepted | Rejected | Step | Pulse | Tokens | Embedded | Fatal
)  # fmt: skip

_KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in get_args(Message)}


def encode(message: Message) -> bytes:
    """Return one frame: length and body. Raises WireError if it cannot be said (see _frame)."""
    return _frame(message)


def decode(body: bytes | memoryview) -> Message:
    """Rebuild a message from a frame's body; WireError on anything that is not one of ours."""
    name, values = _unpack(body)
    kind = _KINDS.get(name)
    if kind is None:
        raise WireError(f"unknown message {name!r}")
    message: Message = build(kind, values)
    return message


def encode_config(config: EngineConfig) -> bytes:
    """Return the frame that opens a conversation with an engine child."""
    return _frame(config)


def decode_config(body: bytes | memoryview) -> EngineConfig:
    """Rebuild the settings from the body of the first frame."""
    name, values = _unpack(body)
    if name != "EngineConfig":
        raise WireError(f"the first message is {name!r}, not the settings")
    return build(EngineConfig, values)


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
        body: bytes = msgpack.packb([type(value).__name__, plain(value)], default=plain)
    except (ValueError, OverflowError, TypeError) as error:
        raise WireError(f"{type(value).__name__} cannot be sent: {error}") from error
    return HEADER.pack(_check_size(len(body))) + body


def _unpack(body: bytes | memoryview) -> tuple[str, dict[str, Any]]:
    try:
        item = msgpack.unpackb(body, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise WireError(f"not msgpack: {type(error).__name__}: {error}") from error
    match item:
        case [str(name), dict(values)]:
            return name, values
    raise WireError("a message is an array of a name and its fields")
