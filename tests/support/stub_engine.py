"""An engine child that says what a script tells it: for faults that a real engine has rarely.

It speaks `engine/wire.py` over a socket as the real worker does. Run as a program by `spawn`;
behaviour is chosen by the prompt: the first rule whose `match` occurs in it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from edgekit_server.config import EngineConfig
from edgekit_server.engine import wire

ROOT = Path(__file__).resolve().parents[2]
CONTROL = [
    "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
    "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[ARGS]", "[THINK]", "[/THINK]",
]  # fmt: skip
TEMPLATE = """{{ bos_token }}
{%- for m in messages %}
{%- if m.role == 'system' %}[SYSTEM_PROMPT]{{ m.content }}[/SYSTEM_PROMPT]
{%- elif m.role == 'user' %}
{%- if tools and loop.index0 <= 1 -%}
[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}
{{- '[INST]' + m.content + '[/INST]' }}
{%- elif m.role == 'assistant' %}{{ m.content }}
{%- for c in m.tool_calls or [] %}
{{- '[TOOL_CALLS]' + c.function.name + '[ARGS]' + c.function.arguments | tojson }}
{%- endfor %}{{ eos_token }}
{%- elif m.role == 'tool' %}{{ '[TOOL_RESULTS]' + m.content + '[/TOOL_RESULTS]' }}
{%- endif %}
{%- endfor %}"""


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens to a prompt that contains `match`. Nothing in `say`: straight to `finish`."""

    match: str
    say: list[list[object]] = field(default_factory=list)
    """(text, is control token) pairs, one output each."""
    finish: str = "stop"
    pause_s: float = 0.0
    """Before each output."""
    silent_s: float = 0.0
    """Between Accepted and the first output."""
    reject: str | None = None
    die_after: int | None = None
    """Outputs after which the process kills itself."""
    hang: bool = False
    """After the outputs, say nothing more and ignore Stop."""


def said(text: str) -> list[list[object]]:
    """Return a `say` list: one output per character of plain text."""
    return [[char, False] for char in text]


@dataclass(frozen=True, slots=True)
class StubEngine:
    """A `Spawn` for the front: `spawn` starts the program below with these rules."""

    rules: list[Rule]
    log: Path
    """Gets a line per message received."""
    load_s: float = 0.0
    fatal: str | None = None
    """Instead of Hello: a Fatal with this code."""
    n_ctx_seq: int = 2048

    def spawn(self, config: EngineConfig) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair()
        script = {
            "rules": [asdict(rule) for rule in self.rules],
            "log": str(self.log),
            "load_s": self.load_s,
            "fatal": self.fatal,
            "n_ctx_seq": self.n_ctx_seq,
        }
        paths = os.pathsep.join([str(ROOT), str(ROOT / "server")])
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.stub_engine", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                env={**os.environ, "PYTHONPATH": paths, "STUB_SCRIPT": json.dumps(script)},
                cwd=ROOT,
            )
        ours.sendall(wire.encode_config(config))
        return process, ours

    def lines(self) -> list[str]:
        """Return what the stub has logged."""
        return self.log.read_text().splitlines() if self.log.exists() else []


class _Stub:
    def __init__(self, sock: socket.socket, script: dict[str, object]) -> None:
        self.sock = sock
        self.rules = [Rule(**r) for r in script["rules"]]  # type: ignore[attr-defined]
        self.path = Path(str(script["log"]))
        self.lock = threading.Lock()
        self.cancelled: set[int] = set()
        self.hanging = False

    def note(self, line: str) -> None:
        with self.lock, self.path.open("a") as file:
            file.write(line + "\n")

    def send(self, message: wire.Message) -> None:
        with self.lock:
            try:
                wire.send(self.sock, message)
            except OSError:
                os._exit(0)

    def run(self) -> None:
        while (message := wire.receive(self.sock)) is not None:
            match message:
                case wire.Generate():
                    work: Callable[[], None] = lambda m=message: self.answer(m)  # noqa: E731
                    threading.Thread(target=work, daemon=True).start()
                case wire.Cancel():
                    self.note(f"cancel {message.id}")
                    self.cancelled.add(message.id)
                case wire.Stop():
                    self.note("stop")
                    if not self.hanging:
                        return
                case _:
                    pass
        if self.hanging:
            time.sleep(60)

    def answer(self, request: wire.Generate) -> None:
        pieces = [item for item in request.prompt if not isinstance(item, int)]
        text = "".join(text for text, _ in pieces) or json.dumps(request.prompt)
        self.note("generate " + json.dumps([request.id, request.max_tokens, request.prompt]))
        rule = next((r for r in self.rules if r.match in text), Rule("", said("hello")))
        if rule.reject:
            self.send(wire.Rejected(request.id, rule.reject, f"scripted {rule.reject}", 9000))
            return
        self.send(wire.Accepted(request.id, len(text)))
        time.sleep(rule.silent_s)
        for number, (piece, control) in enumerate(rule.say):
            if rule.die_after == number:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(rule.pause_s)
            if request.id in self.cancelled:
                self.send(wire.Step([wire.Output(request.id, [], [], finish="cancelled")]))
                return
            data = str(piece).encode("utf-8", "surrogateescape")
            wanted = request.sampling.n_logprobs
            tops = [] if wanted is None else [wire.TopToken(number, data, -0.5)]
            output = wire.Output(
                id=request.id,
                tokens=[number],
                pieces=[(data, bool(control))],
                logprobs=tops,
                top_logprobs=[tops * (wanted or 0)] if tops else [],
                n_cached=3 if number == 0 else None,
            )
            self.send(wire.Step([output]))
        if rule.die_after is not None and rule.die_after >= len(rule.say):
            os.kill(os.getpid(), signal.SIGKILL)
        if rule.hang:
            self.hanging = True
            return
        self.send(wire.Step([wire.Output(request.id, [], [], finish=rule.finish)]))


def main(fd: int) -> None:
    script = json.loads(os.environ["STUB_SCRIPT"])
    sock = socket.socket(fileno=fd)
    frame = wire.read_frame(sock)
    assert frame is not None
    config = wire.decode_config(frame)
    time.sleep(float(script["load_s"]))
    stub = _Stub(sock, script)
    if script["fatal"]:
        stub.send(wire.Fatal(script["fatal"], "scripted failure"))
        return
    stub.send(
        wire.Hello(
            model_id=config.model_id,
            architecture="llama",
            description="stub",
            n_params=1000,
            size_bytes=2000,
            n_vocab=4096,
            n_ctx_train=8192,
            n_ctx=8192,
            n_ctx_seq=script["n_ctx_seq"],
            n_seq_max=4,
            chat_template=TEMPLATE,
            bos="<s>",
            eos="</s>",
            add_bos=True,
            fim={"prefix": "[PREFIX]", "suffix": "[SUFFIX]", "middle": "[MIDDLE]"},
            control_tokens=CONTROL,
            reasons={},
            control_ids={text: at for at, text in enumerate(CONTROL)},
        )
    )
    stub.run()
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
