"""A file takes another's place under load: nobody notices but by the answers."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from edgekit_server import swap as swap_module
from edgekit_server.config import EngineConfig
from tests.support.http_server import config_for, running
from tests.support.stub_engine import Rule, StubEngine, said


def order(path: Path, model: str, file: Path) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"model": model, "path": str(file)}))
    partial.replace(path)


def done(path: Path, timeout_s: float = 20.0) -> dict[str, object]:
    deadline = time.monotonic() + timeout_s
    said = path.with_name(f"{path.name}.done")
    while not said.exists():
        assert time.monotonic() < deadline, "nothing came of the order"
        time.sleep(0.02)
    found: dict[str, object] = json.loads(said.read_text())
    said.unlink()
    return found


class Spawns:
    """Stubs by the file that they are to load."""

    def __init__(self, folder: Path) -> None:
        for name in ("old.gguf", "new.gguf", "bad.gguf"):
            (folder / name).touch()
        self.stubs = {
            "old.gguf": StubEngine([Rule("", said("o" * 30), pause_s=0.02)], folder / "old.log"),
            "new.gguf": StubEngine(
                [Rule("", said("n" * 30), pause_s=0.02)], folder / "new.log", load_s=0.5
            ),
            "bad.gguf": StubEngine([], folder / "bad.log", fatal="model_load_failed"),
        }

    def __call__(self, config: EngineConfig) -> tuple[subprocess.Popen[bytes], socket.socket]:
        return self.stubs[config.model_path.name].spawn(config)


class Load:
    """Clients that ask without a pause; every answer and every failure is kept."""

    def __init__(self, url: str, clients: int = 4) -> None:
        self.url, self.ended = url, threading.Event()
        self.answers: list[str] = []
        self.failures: list[str] = []
        self.threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(clients)]
        for thread in self.threads:
            thread.start()

    def _ask(self, number: int) -> None:
        with httpx.Client(timeout=20) as client:
            while not self.ended.is_set():
                body = {"model": "tiny", "prompt": "hi", "stream": bool(number % 2)}
                answer = client.post(f"{self.url}/v1/completions", json=body)
                text = answer.text
                if answer.status_code != 200 or '"error"' in text:
                    self.failures.append(text)
                kinds = {kind for kind in "on" if f'"text":"{kind}' in text.replace(" ", "")}
                self.answers.append("".join(sorted(kinds)))

    def end(self) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join(20)


def test_no_request_fails_and_none_is_of_two_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swap_module, "LOOK_S", 0.05)
    monkeypatch.setattr(swap_module, "QUIET_S", 0.3)
    orders, spawn = tmp_path / "swap.json", Spawns(tmp_path)
    config = replace(config_for(tmp_path / "old.gguf"), swap=orders)
    with running(config, spawn) as server:
        load = Load(server.url)
        time.sleep(0.7)
        order(orders, "tiny", tmp_path / "new.gguf")
        new, old = str(tmp_path / "new.gguf"), str(tmp_path / "old.gguf")
        assert done(orders) == {"path": new, "old": old, "error": None}
        time.sleep(0.7)
        load.end()
        assert not load.failures
        assert Counter(load.answers).keys() == {"o", "n"}
        first = load.answers.index("n")
        # Those that had begun may end after the first of the new ones.
        assert load.answers[first:].count("o") <= 4
        assert load.answers[-1] == "n"
        assert (tmp_path / "old.log").read_text().endswith("stop\n")
        # And back, which is a rollback.
        order(orders, "tiny", tmp_path / "old.gguf")
        assert done(orders)["error"] is None
        answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "hi"}).json()
        assert answer["choices"][0]["text"].startswith("o")


@pytest.mark.parametrize("what", ["bad.gguf", "gone.gguf", "unknown model", "no json"])
def test_what_cannot_be_loaded_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(swap_module, "LOOK_S", 0.05)
    orders, spawn = tmp_path / "swap.json", Spawns(tmp_path)
    config = replace(config_for(tmp_path / "old.gguf"), swap=orders)
    with running(config, spawn) as server:
        if what == "no json":
            orders.write_text("{")
        else:
            known = what.endswith(".gguf")
            order(orders, "tiny" if known else "other", tmp_path / (what if known else "new.gguf"))
        assert done(orders)["error"]
        answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "hi"}).json()
        assert answer["choices"][0]["text"].startswith("o")


def test_a_server_that_stops_while_a_file_loads_leaves_no_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swap_module, "LOOK_S", 0.05)
    orders, spawn = tmp_path / "swap.json", Spawns(tmp_path)
    processes: list[subprocess.Popen[bytes]] = []

    def noted(config: EngineConfig) -> tuple[subprocess.Popen[bytes], socket.socket]:
        found = spawn(config)
        processes.append(found[0])
        return found

    config = replace(config_for(tmp_path / "old.gguf"), swap=orders)
    with running(config, noted):
        order(orders, "tiny", tmp_path / "new.gguf")
        deadline = time.monotonic() + 10
        while len(processes) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert [process.poll() is not None for process in processes] == [True, True]
