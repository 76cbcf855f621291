"""An upgrade without a network, under load: a newer bundle, the switch, and the way back."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest

from edgekit.bundle import keys
from edgekit.bundle.create import Item, create
from edgekit.catalogue import find_model
from edgekit.errors import EdgekitError
from edgekit.store import Entry
from edgekit.switch import check_memory
from edgekit_quantize import convert
from tests.support.cli import POCKET, Cli, free_port, until


def bundle(folder: Path, name: str, source: Path) -> Path:
    made = convert(source, folder / f"{name}.gguf", "Q8_0")
    entry = Entry("pocket", "Q8_0", made.sha256, made.file_bytes, made.tensor_bytes, name, "t")
    item = Item(find_model("pocket"), entry, folder / f"{name}.gguf", {"LICENSE": b"terms\n"})
    create(folder / name, [item], keys.read_private(folder / "k.pem"))
    return folder / name


class Load:
    """Clients that ask one request after the other."""

    def __init__(self, url: str) -> None:
        self.url, self.ended = url, threading.Event()
        self.answered = 0
        self.failures: list[str] = []
        self.threads = [threading.Thread(target=self._ask) for _ in range(3)]
        for thread in self.threads:
            thread.start()

    def _ask(self) -> None:
        with httpx.Client(timeout=60) as client:
            while not self.ended.is_set():
                body = {"model": "pocket", "prompt": "def ", "max_tokens": 24}
                try:
                    answer = client.post(f"{self.url}/v1/completions", json=body)
                    answer.raise_for_status()
                    self.answered += 1
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))

    def end(self) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join(60)


@pytest.mark.slow
def test_a_newer_bundle_takes_over_under_load_and_goes_again(tmp_path: Path) -> None:
    keys.generate(tmp_path / "k.pem", tmp_path / "k.pub")
    other = tmp_path / "other"
    shutil.copytree(POCKET, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "edition": "newer"}))
    old, new = bundle(tmp_path, "old", POCKET), bundle(tmp_path, "new", other)
    cli, port = Cli(tmp_path / "there"), free_port()
    cli.home.mkdir()
    trust = ("--trust", tmp_path / "k.pub")
    cli.json("bundle", "install", old, *trust)
    process = cli.start(
        "deploy", "pocket:Q8_0", "--port", str(port), "--no-measure", "--no-tune", "--no-verify",
        "--offline",
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: list((cli.data / "running").glob("*.json")), "a deployment", 120)
        load = Load(url)
        cli.json("bundle", "install", new, *trust)
        before = cli.json("store", "rollback", "pocket")["sha256"]
        after = cli.json("store", "rollback", "pocket")["sha256"]
        assert before != after
        done = cli.json("store", "switch", "pocket")
        assert done["sha256"] == after
        began = time.monotonic()
        assert cli.json("store", "rollback", "pocket")["sha256"] == before
        index_s = time.monotonic() - began
        assert cli.json("store", "switch", "pocket")["sha256"] == before
        back_s = time.monotonic() - began
        load.end()
        assert not load.failures
        assert load.answered > 10
        print(f"{load.answered} answered, 0 failed; {index_s:.1f} s, {back_s:.1f} s", done)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def test_two_files_that_do_not_fit_side_by_side_are_said_before() -> None:
    check_memory(10, None)
    check_memory(10, 1 << 30)
    with pytest.raises(EdgekitError) as error:
        check_memory(1 << 30, 1 << 30)
    assert error.value.code == "no_room_beside"
