"""The wire: every message survives the trip, nothing else gets through."""

from __future__ import annotations

import contextlib
import socket
import struct
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit_server.config import EngineConfig
from edgekit_server.engine import wire
from edgekit_server.errors import WireError

HELLO = wire.Hello(
    model_id="m",
    architecture="llama",
    description="tiny",
    n_params=10,
    size_bytes=20,
    n_vocab=300,
    n_ctx_train=512,
    n_ctx=256,
    n_ctx_seq=256,
    n_seq_max=4,
    chat_template=None,
    bos="<s>",
    eos=None,
    add_bos=True,
    fim={"prefix": "[PREFIX]"},
    control_tokens=["<s>"],
    reasons={"n_threads": "2 cores"},
)
MESSAGES: list[wire.Message] = [
    wire.Generate(1, [("<s>", True), ("häß\0", False)]),
    wire.Generate(2, [1, 2, 3], 7, sampling=wire.Sampling(seed=3, logit_bias={5: -100.0})),
    wire.Cancel(1),
    wire.Tokenize(9, [("x", False)]),
    wire.Stop(),
    HELLO,
    wire.Accepted(1, 12),
    wire.Rejected(1, "queue_full", "try later"),
    wire.Step([wire.Output(1, [4], [(b"\xff\x00", True)], finish="stop", n_cached=0)]),
    wire.Step(
        [
            wire.Output(
                1,
                [4],
                [(b"a", False)],
                [wire.TopToken(4, b"a", -0.5)],
                [[wire.TopToken(4, b"a", -0.5), wire.TopToken(5, b"b", -1.5)]],
            )
        ]
    ),
    wire.Tokens(9, [1, 2]),
    wire.Pulse(7, 3),
    wire.Embed(8, [[("a", False)], [1, 2], []], norm=-1, dimensions=3),
    wire.Embedded(8, [b"\x00\x00\x80?"], [2]),
    wire.Fatal("bad_model", "no"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_round_trip(message: wire.Message) -> None:
    frame = wire.encode(message)
    (back,) = wire.Decoder().feed(frame)
    assert back == message
    assert type(back) is type(message)


def test_every_message_kind_is_covered() -> None:
    assert {type(m) for m in MESSAGES} == set(wire._KINDS.values())


@given(st.lists(st.integers(1, 40), min_size=1, max_size=200))
@settings(max_examples=50, deadline=None)
def test_decoder_takes_any_pieces(cuts: list[int]) -> None:
    stream = b"".join(wire.encode(m) for m in MESSAGES)
    decoder = wire.Decoder()
    seen: list[wire.Message] = []
    at = 0
    for cut in cuts:
        seen += decoder.feed(stream[at : at + cut])
        at += cut
    seen += decoder.feed(stream[at:])
    assert seen == MESSAGES
    assert decoder.pending_bytes == 0


def test_blocking_side() -> None:
    left, right = socket.socketpair()
    with left, right:
        for message in MESSAGES:
            wire.send(left, message)
        left.close()
        for message in MESSAGES:
            assert wire.receive(right) == message
        assert wire.receive(right) is None


def test_a_torn_stream_is_an_error() -> None:
    left, right = socket.socketpair()
    with right:
        left.sendall(wire.encode(wire.Cancel(1))[:-1])
        left.close()
        with pytest.raises(WireError):
            wire.receive(right)


BAD_BODIES = [
    b"",
    b"\xc1",
    msgpack.packb(1),
    msgpack.packb(["Cancel"]),
    msgpack.packb(["Cancel", {"id": 1}, 2]),
    msgpack.packb(["Cancel", {}]),
    msgpack.packb(["Cancel", {"id": "1"}]),
    msgpack.packb(["Cancel", {"id": True}]),
    msgpack.packb(["Cancel", {"id": 1, "more": 2}]),
    msgpack.packb(["Cancel", {1: 1, "id": 1}]),
    msgpack.packb(["Nothing", {}]),
    msgpack.packb(["Generate", {"id": 1, "prompt": [["x"]]}]),
    msgpack.packb(["Generate", {"id": 1, "prompt": [["x", 1]]}]),
    msgpack.packb(["Generate", {"id": 1, "prompt": "text"}]),
    msgpack.packb(["Generate", {"id": 1, "prompt": [1], "sampling": {"logit_bias": {"1": 2}}}]),
    msgpack.packb(["Step", {"outputs": [{"id": 1}]}]),
]


@pytest.mark.parametrize("body", BAD_BODIES)
def test_bad_bodies(body: bytes) -> None:
    with pytest.raises(WireError):
        wire.decode(body)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_message_or_a_wire_error(data: bytes) -> None:
    with contextlib.suppress(WireError):
        wire.decode(data)


@pytest.mark.parametrize("size", [0, wire.MAX_MESSAGE_BYTES + 1, 0xFFFFFFFF])
def test_impossible_sizes(size: int) -> None:
    with pytest.raises(WireError):
        wire.Decoder().feed(struct.pack(">I", size))


def test_what_cannot_be_sent() -> None:
    with pytest.raises(WireError):
        wire.encode(wire.Tokenize(1, [("\ud800", False)]))
    with pytest.raises(WireError):
        wire.encode(wire.Cancel(1 << 70))


def test_settings_travel() -> None:
    config = EngineConfig(
        model_path=Path("/m/ä\udcff.gguf"), model_id="x", n_threads=2, flash_attn=True
    )
    frame = wire.encode_config(config)
    assert wire.decode_config(frame[wire.HEADER.size :]) == config
    with pytest.raises(WireError):
        wire.decode_config(wire.encode(wire.Stop())[wire.HEADER.size :])
