"""The engine child that starts before the front is imported: taken once, or ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import edgekit_server
from edgekit_server.engine.spawn import Ahead
from edgekit_server.errors import PortInUseError
from tests.support.http_server import config_for


def test_the_first_call_takes_it_and_the_next_starts_another(gguf: Path) -> None:
    config = config_for(gguf).engine
    with Ahead(config) as spawn:
        first, sock = spawn(config)
        second, other = spawn(config)
    assert first.pid != second.pid
    for process, end in ((first, sock), (second, other)):
        end.close()  # an engine child ends with its front
        process.wait(20)


def test_other_settings_start_a_child_of_their_own(gguf: Path) -> None:
    config = config_for(gguf).engine
    with Ahead(config) as spawn:
        process, sock = spawn(replace(config, n_ctx=512))
        sock.close()
        process.wait(20)


def test_one_that_nobody_took_is_ended(gguf: Path) -> None:
    with Ahead(config_for(gguf).engine) as spawn:
        assert spawn._first is not None
        process = spawn._first[0]
    assert process.returncode is not None


def test_a_taken_port_ends_it_too(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgekit_server import app
    from edgekit_server.engine import spawn as module

    started = []
    real = module.spawn
    monkeypatch.setattr(module, "spawn", lambda config: started.append(real(config)) or started[-1])
    held = app.bind("127.0.0.1", 0)
    with held, pytest.raises(PortInUseError):
        edgekit_server.serve(config_for(gguf, port=held.getsockname()[1]))
    assert [process.returncode is not None for process, _ in started] == [True]
