"""Sequences outside KV memory: in RAM and on disk, and back."""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgekit_server.config import EngineConfig
from edgekit_server.engine import kvfile, stores
from edgekit_server.engine import request as requests
from edgekit_server.engine.checkpoints import Checkpoint, Kind
from edgekit_server.engine.diskcache import DiskCache
from edgekit_server.engine.hostcache import MOST_PAUSE_S, HostCache
from edgekit_server.engine.keeper import QUIET_WAITS
from edgekit_server.engine.resident import Saved
from tests.support.engine import driver
from tests.support.gguf_models import write_model

RNG = np.random.default_rng(4)
PROMPTS = [RNG.integers(8, 264, n).tolist() for n in (90, 120, 150, 200)]
ANY = Kind()


def saved(tokens: list[int], n_bytes: int = 100, checkpoints: tuple[Checkpoint, ...] = ()) -> Saved:
    blob = np.arange(n_bytes, dtype=np.uint8)
    return Saved(array("i", tokens), blob, checkpoints)


def lengths(cache: HostCache) -> list[int]:
    return [len(entry.saved.tokens) for entry in cache._entries]


# -- in RAM -----------------------------------------------------------------------------------


def test_the_budget_holds_and_the_oldest_goes() -> None:
    cache = HostCache(1000)
    for i in range(9):
        cache.put(saved([i, *range(100, 100 + 10 + i)], 200))
        assert cache.n_bytes <= cache.budget
    assert lengths(cache) == [17, 18, 19]
    cache.find(array("i", [6, *range(100, 120)]), ANY)
    assert lengths(cache) == [18, 19, 17]  # the youngest is the last used
    cache.put(saved([50, 51], 300))
    assert lengths(cache) == [19, 17, 2]
    cache.put(saved([60], 5000))
    assert 1 not in lengths(cache)  # never worth all the others


def test_a_longer_one_takes_the_place_of_its_beginning() -> None:
    cache = HostCache(1000)
    cache.put(saved([1, 2, 3]))
    cache.put(saved([1, 2, 3, 4]))
    assert lengths(cache) == [4]
    assert not cache.wants(array("i", [1, 2, 3]), 10, hurried=False)
    assert cache.wants(array("i", [1, 2, 5]), 10, hurried=False)


def test_what_is_found() -> None:
    cache = HostCache(10_000)
    for tokens in ([1, 2, 3], [1, 2, 4, 5], [9, 9]):
        cache.put(saved(tokens))
    found, n = cache.find(array("i", [1, 2, 4, 5]), ANY)
    assert found is not None
    assert (found.tokens.tolist(), n) == ([1, 2, 4, 5], 3)  # one is left to compute
    assert cache.find(array("i", [7, 8]), ANY) == (None, 0)
    state = Kind(recurrent=True)
    assert cache.find(array("i", [1, 2, 4, 5]), state) == (None, 0)  # it cannot go back a token
    cache.put(saved([1, 2, 4, 5], 100, (Checkpoint(2, np.zeros(4, np.uint8)),)))
    assert cache.find(array("i", [1, 2, 4, 5]), state)[1] == 2


def test_a_large_copy_waits_until_nothing_runs() -> None:
    cache = HostCache(10**10)
    tokens = array("i", range(40))
    n_bytes = int(cache._rate * MOST_PAUSE_S)
    assert cache.wants(tokens, n_bytes, hurried=True)
    assert not cache.wants(tokens, n_bytes + 1, hurried=True)
    assert cache.wants(tokens, n_bytes + 1, hurried=False)


# -- on disk ----------------------------------------------------------------------------------


@pytest.fixture
def said() -> list[str]:
    return []


@contextlib.contextmanager
def disk(
    folder: Path, said: list[str], key: str = "abc", budget: int = 10**9
) -> Iterator[DiskCache]:
    cache = DiskCache(folder, key, said.append, budget=budget)
    try:
        yield cache
    finally:
        cache.close(5.0)


def test_a_file_comes_back(tmp_path: Path, said: list[str]) -> None:
    one = saved([1, 2, 3], 100, (Checkpoint(2, np.arange(7, dtype=np.uint8)),))
    with disk(tmp_path, said) as cache:
        assert cache.put(one)
        assert cache.put(saved([1, 2]))  # a beginning of the first
    with disk(tmp_path, said) as cache:
        again = cache.find(array("i", [1, 2, 3, 4]), 2)
        assert again is not None
        assert again.tokens == one.tokens
        assert np.array_equal(again.blob, one.blob)
        assert again.checkpoints[0].n_tokens == 2
        assert np.array_equal(again.checkpoints[0].blob, one.checkpoints[0].blob)
        assert cache.find(array("i", [1, 2, 3, 4]), 3) is None
    with disk(tmp_path, said, key="other") as cache:
        assert len(cache) == 0
    assert not said
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-1],
        lambda b: b + b"x",
        lambda b: b[:-1] + bytes([b[-1] ^ 1]),
        lambda b: b"",
        lambda b: b"\xff\x00not json\n" + b,
        lambda b: b.replace(b'"n_tokens": 3', b'"n_tokens": -3'),
        lambda b: b.replace(b'"n_tokens": 3', b'"n_tokens": "3"'),
        lambda b: b.replace(b'"key": "abc"', b'"key": "abd"'),
        lambda b: b.replace(b'"checkpoints": []', b'"checkpoints": [[1]]'),
        lambda b: b.replace(b'"format": 1', b'"format": 2'),
    ],
)
@pytest.mark.parametrize("when", ["before the start", "while it runs"])
def test_a_broken_file_is_told_of_and_removed(
    tmp_path: Path, said: list[str], damage: object, when: str
) -> None:
    with disk(tmp_path, said) as cache:
        cache.put(saved([1, 2, 3]))
    (path,) = tmp_path.glob("*.kv")
    broken = damage(path.read_bytes())  # type: ignore[operator]
    if when == "before the start":
        path.write_bytes(broken)
    with disk(tmp_path, said) as cache:
        if when == "while it runs":
            path.write_bytes(broken)
        assert cache.find(array("i", [1, 2, 3, 4]), 0) is None
        assert len(cache) == 0
    assert len(said) == 1
    assert path.name in said[0]
    assert not path.exists()


def test_a_file_that_vanished(tmp_path: Path, said: list[str]) -> None:
    with disk(tmp_path, said) as cache:
        cache.put(saved([1, 2, 3]))
    with disk(tmp_path, said) as cache:
        next(tmp_path.glob("*.kv")).unlink()
        assert cache.find(array("i", [1, 2, 3, 4]), 0) is None
    assert not said


def test_the_folder_keeps_to_its_budget(tmp_path: Path, said: list[str]) -> None:
    with disk(tmp_path, said, key="old") as cache:
        cache.put(saved([5, 5], 1000))
    (old,) = tmp_path.glob("*.kv")
    os.utime(old, (1, 1))
    with disk(tmp_path, said, budget=3500) as cache:
        for i in range(3):
            cache.put(saved([i, 7], 900))
    assert not old.exists()
    assert len(list(tmp_path.glob("*.kv"))) == 3
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 3500


def test_a_folder_that_is_none(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "file").write_text("")
    with disk(tmp_path / "file", said) as cache:
        cache.put(saved([1, 2, 3]))
        assert cache.find(array("i", [1, 2, 3]), 0) is None
    assert len(said) == 2


def test_models_are_told_apart(tmp_path: Path) -> None:
    a = write_model(tmp_path / "a.gguf")
    b = write_model(tmp_path / "b.gguf", seed=2)  # one head, one size, other weights
    assert a.stat().st_size == b.stat().st_size
    assert kvfile.model_digest(a) == kvfile.model_digest(a)
    assert kvfile.model_digest(a) != kvfile.model_digest(b)
    assert kvfile.compatibility(a=1) != kvfile.compatibility(a=2)


# -- with the engine --------------------------------------------------------------------------


@pytest.mark.parametrize("unified", [True, False])
def test_an_evicted_sequence_comes_back(tiny_model: Path, unified: bool) -> None:
    store = HostCache(10**8)
    with driver(
        tiny_model, n_seq_max=1, n_ctx=512, store=store, unified=unified, exact=True
    ) as engine:
        alone = [engine.alone(prompt, 12) for prompt in PROMPTS]
        longer = engine.alone([*PROMPTS[0], *alone[0], 50], 12)
        edited = engine.alone([*PROMPTS[1][:100], 51], 12)
        for prompt, text in zip(PROMPTS, alone, strict=True):
            request = engine.submit(prompt, 12)
            engine.run()
            assert engine.tokens(request) == text
        assert len(store) == 3
        back = engine.submit([*PROMPTS[0], *alone[0], 50], 12)
        engine.run()
        assert engine.outputs[back][0].n_cached == 90 + 11
        assert engine.tokens(back) == longer
        back = engine.submit([*PROMPTS[1][:100], 51], 12)
        engine.run()
        assert engine.outputs[back][0].n_cached == 100
        assert engine.tokens(back) == edited
        resident = engine.loop.table.residents[0]
        assert engine.context.seq_length(0) == len(resident.tokens)
        assert engine.loop.table.used_cells() == len(resident.tokens)


def test_a_preempted_sequence_comes_back(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [[20 + i, 30, 40] for i in range(4)]
    for store, n_most in ((None, 10**6), (HostCache(10**8), 4 * 3 + 4 * 120)):
        with driver(tiny_model, n_ctx=256, n_batch=64, store=store, exact=True) as engine:
            alone = [engine.alone(prompt, 120) for prompt in prompts]
            monkeypatch.setattr(requests, "ADMISSION_RESERVE", 8)
            rows = 0
            real = engine.context.decode

            def decode(batch: object, real: object = real) -> int:
                nonlocal rows
                code = real(batch)  # type: ignore[operator]
                rows += batch.n_tokens if code == 0 else 0  # type: ignore[attr-defined]
                return int(code)

            engine.context.decode = decode  # type: ignore[method-assign, assignment]
            ids = [engine.submit(prompt, 120) for prompt in prompts]
            engine.run()
            assert engine.loop.admission.n_preempted > 0
            assert [engine.tokens(i) for i in ids] == alone
            assert rows <= n_most


def test_nothing_of_a_private_request_is_kept(tiny_model: Path) -> None:
    store = HostCache(10**8)
    with driver(tiny_model, n_seq_max=1, store=store) as engine:
        engine.submit(PROMPTS[0], 5, cache=False)
        engine.submit(PROMPTS[1], 5, cache=False)
        engine.run()
        assert not engine.loop.admission.tidy()
        assert len(store) == 0


def test_idle_sequences_are_saved_when_nothing_runs(tiny_model: Path) -> None:
    store = HostCache(10**8)
    with driver(tiny_model, store=store) as engine:
        for prompt in PROMPTS[:3]:
            engine.submit(prompt, 4)
        engine.run()
        assert len(store) == 0
        while engine.loop.admission.tidy():
            pass
        assert len(store) == 3
        engine.submit(PROMPTS[3], 4)
        engine.loop.step()
        assert not engine.loop.admission.tidy()


def test_when_memory_is_saved(tiny_model: Path, tmp_path: Path, said: list[str]) -> None:
    """Not at a call; in RAM at the first wait for nothing; on disk after many."""
    with disk(tmp_path, said) as cache:
        store = HostCache(10**8, cache)
        with driver(tiny_model, store=store) as engine:
            engine.submit(PROMPTS[0], 4)
            engine.run()
            keeper = engine.loop._keeper
            engine.loop._wake.clear()
            keeper.rest(called=True)
            assert len(store) == 0
            for n in range(QUIET_WAITS):
                keeper.rest(called=False)
                assert len(store) == 1
                assert store._entries[0].on_disk == (n == QUIET_WAITS - 1)
    assert len(list(tmp_path.glob("*.kv"))) == 1


def test_a_store_that_gives_nonsense(tiny_model: Path) -> None:
    """llama.cpp refuses it; the prompt is computed."""
    store = HostCache(10**8)
    with driver(tiny_model, store=store) as engine:
        alone = engine.alone(PROMPTS[0], 8)
        store.put(saved(PROMPTS[0], 5000))
        request = engine.submit(PROMPTS[0], 8)
        engine.run()
        assert engine.outputs[request][0].n_cached == 0
        assert engine.tokens(request) == alone


def test_over_a_restart(tiny_model: Path, tmp_path: Path) -> None:
    config = EngineConfig(tiny_model, "m", disk_cache=tmp_path / "kv")

    def store(**other: int) -> HostCache:
        facts = {"n_ctx_seq": 2048, "unified": True, "layout": "x", "build": "y", **other}
        made, _ = stores.build(config, **facts)  # type: ignore[arg-type]
        assert made is not None
        return made

    with driver(tiny_model, store=store()) as engine:
        engine.submit(PROMPTS[0], 8)
        engine.run()
        engine.loop.stop()
        engine.loop.run()
        alone = engine.alone([*PROMPTS[0], 9, 10], 8)
    with driver(tiny_model, store=store()) as engine:
        request = engine.submit([*PROMPTS[0], 9, 10], 8)
        engine.run()
        assert engine.outputs[request][0].n_cached == 90
        assert engine.tokens(request) == alone
        engine.loop.stop()
        engine.loop.run()
    other = store(n_ctx_seq=1024)
    other.prefetch(array("i", PROMPTS[0]), ANY)
    assert len(other) == 0
    other.close(1.0)


def test_what_the_settings_ask_for(tiny_model: Path) -> None:
    facts = {"n_ctx_seq": 1, "unified": True, "layout": "", "build": ""}
    none, why = stores.build(EngineConfig(tiny_model, "m"), **facts)  # type: ignore[arg-type]
    assert none is None
    assert "computed again" in why
    config = EngineConfig(tiny_model, "m", host_cache_bytes=1 << 20)
    some, why = stores.build(config, **facts)  # type: ignore[arg-type]
    assert some is not None
    assert some.budget == 1 << 20
    assert "1 MiB" in why
