"""The engine child over its socketpair, as the front sees it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgekit_server.config import EngineConfig
from edgekit_server.engine import spawn, wire
from edgekit_server.engine.wire import Generate, Sampling
from edgekit_server.errors import WireError
from tests.support.child import GREEDY, Child, child, outputs, settings


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Iterator[Child]:
    with child(settings(tiny_model)) as made:
        hello = made.next()
        assert isinstance(hello, wire.Hello)
        made.hello = hello
        yield made


def test_hello(tiny: Child) -> None:
    hello = tiny.hello
    assert hello is not None
    assert (hello.model_id, hello.architecture) == ("tiny", "llama")
    assert (hello.n_ctx, hello.n_ctx_seq, hello.n_seq_max, hello.n_vocab) == (1024, 1024, 4, 272)
    assert (hello.bos, hello.eos, hello.add_bos) == ("<s>", "</s>", True)
    assert hello.fim == {"prefix": "[PREFIX]", "suffix": "[SUFFIX]", "middle": "[MIDDLE]"}
    assert "[INST]" in hello.control_tokens
    assert hello.chat_template is not None
    assert "bos_token" in hello.chat_template
    assert hello.reasons["n_threads"] == "1: as configured"
    assert hello.reasons["speculation"].startswith("prompt lookup: ")


def test_one_answer(tiny: Child) -> None:
    prompt = [("<s>[INST]", True), ("hello", False), ("[/INST]", True)]
    answer = tiny.answer(Generate(1, prompt, 10, sampling=GREEDY, cache_prompt=False))
    assert [o.finish for o in answer] == [None] * (len(answer) - 1) + ["length"]
    assert answer[0].n_cached == 0
    again = tiny.answer(Generate(2, prompt, 10, sampling=GREEDY))
    tokens = [token for o in answer for token in o.tokens]
    assert len(tokens) == 10
    assert [token for o in again for token in o.tokens] == tokens
    assert all(len(o.pieces) == len(o.tokens) for o in answer)
    assert all(isinstance(piece, bytes) for o in answer for piece, _ in o.pieces)


def test_prefix_is_kept_between_requests(tiny: Child) -> None:
    prompt = list(range(20, 90))
    tiny.answer(Generate(3, prompt, 4, sampling=GREEDY))
    second = tiny.answer(Generate(4, [*prompt, 5], 4, sampling=GREEDY))
    assert second[0].n_cached == len(prompt)


def test_cancel(tiny: Child) -> None:
    tiny.send(Generate(5, [9, 10], None, ignore_eos=True, sampling=GREEDY))
    tiny.until(lambda m: isinstance(m, wire.Step))
    tiny.send(wire.Cancel(5))
    seen = tiny.until(lambda m: any(o.finish for o in outputs(m)))
    assert outputs(seen[-1])[-1].finish == "cancelled"
    tiny.send(wire.Cancel(5))  # again, and of something unknown: no answer, no harm
    assert tiny.answer(Generate(6, [9], 1, sampling=GREEDY))[-1].finish == "length"


def test_the_end_of_the_context(tiny: Child) -> None:
    answer = tiny.answer(
        Generate(7, [9] * 1000, None, ignore_eos=True, cache_prompt=False, sampling=GREEDY)
    )
    assert sum(len(o.tokens) for o in answer) == 24
    assert answer[-1].finish == "length"
    assert 2 not in [t for o in answer for t in o.tokens]


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (Generate(20, []), "empty_prompt"),
        (Generate(20, [("", True)]), "empty_prompt"),
        (Generate(20, [-1]), "bad_token"),
        (Generate(20, [1, 272]), "bad_token"),
        (Generate(20, [1, 2**40]), "bad_token"),
        (Generate(20, [1], sampling=Sampling(logit_bias={272: 1.0})), "bad_token"),
        (Generate(20, [1], sampling=Sampling(logit_bias={-1: 1.0})), "bad_token"),
        (Generate(20, [9] * 1024), "context_length_exceeded"),
        (Generate(20, [("x y " * 600, False)]), "context_length_exceeded"),
        (Generate(20, [("a" * 1048576, False)]), "context_length_exceeded"),
        (Generate(20, [("!" + "\n/" * 500000, False)]), "context_length_exceeded"),
    ],
)
def test_refusals(tiny: Child, message: Generate, code: str) -> None:
    tiny.send(message)
    rejected = tiny.next()
    assert isinstance(rejected, wire.Rejected)
    assert (rejected.id, rejected.code) == (20, code)
    if code == "context_length_exceeded":
        assert rejected.n_prompt >= 1024
    assert tiny.answer(Generate(21, [9], 1, sampling=GREEDY))[-1].finish == "length"


@pytest.mark.parametrize("text", ["a" * 1048576, "A" * 1048576, " " * 1048576, "\u0301" * 500000])
def test_hostile_texts_leave_the_child_alive(tiny: Child, text: str) -> None:
    tiny.send(wire.Tokenize(30, [(text, False)]))
    reply = tiny.next()
    assert isinstance(reply, wire.Tokens)
    assert reply.id == 30
    assert tiny.process.poll() is None


def test_tokenize(tiny: Child) -> None:
    tiny.send(wire.Tokenize(31, [("<s>", True), ("[INST]", False)]))
    reply = tiny.next()
    assert isinstance(reply, wire.Tokens)
    assert reply.tokens[0] == 1
    assert len(reply.tokens) == 7


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(repeat_penalty=1.3, repeat_last_n=2**31 - 1),
        Sampling(top_k=2**31 - 1, top_p=1.0),
        Sampling(temperature=float("nan")),
        Sampling(temperature=1e30, typical_p=1e-9),
        Sampling(min_p=1.0, top_p=0.0),
        Sampling(seed=2**63 - 1),
        Sampling(n_logprobs=10**6),
        Sampling(logit_bias={i: float("-inf") for i in range(272)}),
    ],
)
def test_odd_sampling_harms_nobody(tiny: Child, sampling: Sampling) -> None:
    answer = tiny.answer(Generate(40, [9, 10], 3, ignore_eos=True, sampling=sampling))
    assert answer[-1].finish in ("length", "error")
    assert tiny.answer(Generate(41, [9], 1, sampling=GREEDY))[-1].finish == "length"


def test_queue_full(tiny_model: Path) -> None:
    with child(settings(tiny_model, n_seq_max=1, max_queue=1)) as busy:
        busy.next()
        for i in range(3):
            busy.send(Generate(i, [9, 10], 900, ignore_eos=True, sampling=GREEDY))
        seen = busy.until(lambda m: isinstance(m, wire.Rejected))
        assert isinstance(seen[-1], wire.Rejected)
        assert (seen[-1].id, seen[-1].code) == (2, "queue_full")
        busy.send(wire.Stop())
        assert busy.ends() == 0


def test_stop_in_the_middle(tiny_model: Path) -> None:
    with child(settings(tiny_model)) as one:
        one.next()
        one.send(Generate(1, [9], 900, ignore_eos=True, sampling=GREEDY))
        one.until(lambda m: isinstance(m, wire.Step))
        one.send(wire.Stop())
        assert one.ends() == 0


def test_ctrl_c_is_the_fronts_business_and_end_of_file_ends_it(tiny_model: Path) -> None:
    with child(settings(tiny_model)) as one:
        one.next()
        os.kill(one.process.pid, signal.SIGINT)
        time.sleep(0.1)
        assert one.answer(Generate(1, [9], 1, sampling=GREEDY))[-1].finish == "length"
        one.sock.close()
        assert one.ends() == 0


def test_kill_is_seen_as_end_of_file(tiny_model: Path) -> None:
    with child(settings(tiny_model)) as one:
        one.next()
        one.send(Generate(1, [9], 1000, ignore_eos=True, sampling=GREEDY))
        one.until(lambda m: isinstance(m, wire.Step))
        one.process.kill()
        assert one.ends() == -signal.SIGKILL
        with contextlib.suppress(WireError):  # a message torn by the kill, or a clean end
            while wire.receive(one.sock) is not None:
                pass
        assert one.sock.recv(1) == b""


@pytest.mark.parametrize(
    ("make", "code", "status"),
    [
        (lambda p, t: settings(t / "absent.gguf"), "model_missing", 66),
        (lambda p, t: settings(garbage(t)), "bad_model", 65),
        (lambda p, t: settings(torn(p, t)), "bad_model", 65),
        (lambda p, t: settings(p, n_seq_max=300, n_batch=400), "bad_config", 78),
        (lambda p, t: settings(p, n_ubatch=4096), "bad_config", 78),
        (lambda p, t: settings(p, type_k="q9_9"), "bad_config", 78),
        (lambda p, t: settings(p, type_v="q8_0", flash_attn=False), "bad_config", 78),
    ],
)
def test_fatal(
    make: Callable[[Path, Path], EngineConfig],
    code: str,
    status: int,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    with child(make(tiny_model, tmp_path)) as one:
        fatal = one.next()
        assert isinstance(fatal, wire.Fatal)
        assert fatal.code == code
        assert fatal.message
        assert one.ends() == status


def garbage(folder: Path) -> Path:
    path = folder / "garbage.gguf"
    path.write_bytes(b"GGUF" + bytes(range(256)))
    return path


def torn(model: Path, folder: Path) -> Path:
    path = folder / "torn.gguf"
    path.write_bytes(model.read_bytes()[:-100_000])
    return path


def test_garbage_on_the_socket_is_fatal(tiny_model: Path) -> None:
    with child(settings(tiny_model)) as one:
        one.next()
        one.sock.sendall(b"\0\0\0\5hello")
        fatal = one.next()
        assert isinstance(fatal, wire.Fatal)
        assert one.ends() == 70


def test_the_parent_vanishes_before_the_settings() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            spawn.command("worker", "--fd", str(theirs.fileno())),
            pass_fds=(theirs.fileno(),),
            env=spawn.environment(),
        )
    ours.close()
    assert process.wait(20) == 0


def test_a_draft_model_in_the_child(tiny_model: Path, pocket: Path) -> None:
    with child(settings(tiny_model, speculation="draft", draft_model=tiny_model)) as made:
        hello = made.next()
        assert isinstance(hello, wire.Hello)
        assert hello.reasons["speculation"].startswith("draft model tiny.gguf")
        plain = made.answer(Generate(1, [9, 9], 40, sampling=GREEDY, speculate=False))
        guessed = made.answer(Generate(2, [9, 9], 40, sampling=GREEDY))
        assert [t for o in guessed for t in o.tokens] == [t for o in plain for t in o.tokens]
        assert plain[-1].n_drafted is None
        assert guessed[-1].n_drafted is not None
    with child(settings(tiny_model, speculation="draft", draft_model=pocket)) as made:
        fatal = made.next()
        assert isinstance(fatal, wire.Fatal)
        assert "tokens, not 272" in fatal.message
        assert made.ends() == 78
