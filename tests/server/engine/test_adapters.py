"""LoRA per request, on real llama.cpp: against merged weights, and side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit_server.config import Adapter
from edgekit_server.engine import wire
from edgekit_server.engine.adapters import NO_ADAPTERS, AdapterSet, Rota, resolve
from edgekit_server.engine.wire import Generate, Sampling
from tests.support.child import Child, child, outputs, settings
from tests.support.gguf_models import write_model
from tests.support.vector_models import write_lora, write_merged

PROMPT = list(range(20, 90))
GREEDY = Sampling(temperature=0.0, n_logprobs=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("lora")
    write_model(made / "base.gguf")
    write_lora(made / "one.gguf", 11)
    write_lora(made / "two.gguf", 12)
    write_merged(made / "merged.gguf", 11, 0.5)
    return made


@pytest.fixture(scope="module")
def engine(folder: Path) -> object:
    files = tuple(Adapter(name, folder / f"{name}.gguf", 0.0) for name in ("one", "two"))
    with child(settings(folder / "base.gguf", adapters=files, host_cache_bytes=1 << 22)) as made:
        hello = made.next()
        assert isinstance(hello, wire.Hello)
        assert [(a.name, a.scale) for a in hello.adapters] == [("one", 0.0), ("two", 0.0)]
        yield made


def said(
    engine: Child, number: int, lora: list[tuple[int, float]] | None = None, n: int = 16
) -> list[int]:
    answer = engine.answer(Generate(number, PROMPT, n, ignore_eos=True, sampling=GREEDY, lora=lora))
    return [token for output in answer for token in output.tokens]


def alone(path: Path) -> tuple[list[int], list[float]]:
    with child(settings(path)) as one:
        one.next()
        answer = one.answer(Generate(1, PROMPT, 16, ignore_eos=True, sampling=GREEDY))
    tokens = [token for output in answer for token in output.tokens]
    return tokens, [top.logprob for output in answer for top in output.logprobs]


def test_scale_0_is_no_adapter(engine: Child, folder: Path) -> None:
    base, _ = alone(folder / "base.gguf")
    assert said(engine, 1) == said(engine, 2, [(0, 0.0)]) == said(engine, 3, []) == base


def test_an_adapter_equals_merged_weights(engine: Child, folder: Path) -> None:
    tokens, logprobs = alone(folder / "merged.gguf")
    message = Generate(4, PROMPT, 16, ignore_eos=True, sampling=GREEDY, lora=[(0, 0.5)])
    answer = engine.answer(message)
    assert [t for o in answer for t in o.tokens] == tokens
    found = [top.logprob for output in answer for top in output.logprobs]
    assert found == pytest.approx(logprobs, abs=2e-3)
    assert tokens != said(engine, 5)


def test_different_adapters_at_once_give_what_each_gives_alone(engine: Child) -> None:
    """One prompt, so that a prefix shared by mistake would show."""
    wanted: list[list[tuple[int, float]] | None] = [
        [(0, 0.5)], [(0, 0.5)], [(1, 0.7)], None, [(0, 0.5), (1, 0.2)], [(1, -0.7)],
    ]  # fmt: skip
    n = 100  # long enough that the second is there before the first has ended
    before = [said(engine, 10 + i, lora, n) for i, lora in enumerate(wanted)]
    assert len({tuple(tokens) for tokens in before}) == 5
    for i, lora in enumerate(wanted):
        engine.send(Generate(20 + i, PROMPT, n, ignore_eos=True, sampling=GREEDY, lora=lora))
    heard: dict[int, list[int]] = {20 + i: [] for i in range(len(wanted))}
    n_open = len(wanted)
    together = 0
    while n_open:
        step = outputs(engine.next())
        together = max(together, len(step))
        for output in step:
            heard[output.id] += output.tokens
            n_open -= output.finish is not None
    assert list(heard.values()) == before
    assert together == 2  # only the two with the same set share steps


def test_a_prefix_comes_from_the_same_set_only(engine: Child) -> None:
    prompt = list(range(100, 160))
    for number, lora, cached in (
        (40, [(0, 0.3)], False), (41, None, False), (42, [(0, 0.3)], True), (43, [], True),
    ):  # fmt: skip
        answer = engine.answer(Generate(number, prompt, 2, ignore_eos=True, lora=lora))
        assert bool(answer[0].n_cached) is cached, number


@pytest.mark.parametrize("lora", [[(2, 1.0)], [(-1, 1.0)], [(0, float("nan"))], [(0, 1), (0, 1)]])
def test_what_is_no_set_is_refused(engine: Child, lora: list[tuple[int, float]]) -> None:
    engine.send(Generate(50, PROMPT, 2, lora=lora))
    refusal = engine.next()
    assert isinstance(refusal, wire.Rejected)
    assert refusal.code == "bad_adapter"


@pytest.mark.parametrize("kind", ["missing", "broken", "foreign", "twice"])
def test_an_adapter_that_does_not_load_stops_the_engine(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "bad.gguf"
    if kind == "broken":
        path.write_bytes(b"GGUF nothing")
    elif kind == "foreign":
        write_lora(path, 1, arch="qwen2")
    files = (Adapter("bad", path),)
    if kind == "twice":
        files = (Adapter("bad", folder / "one.gguf"),) * 2
    with child(settings(folder / "base.gguf", adapters=files)) as one:
        fatal = one.next()
        assert isinstance(fatal, wire.Fatal)
        assert fatal.code == {"missing": "model_missing", "twice": "bad_config"}.get(
            kind, "bad_model"
        )
        assert "bad" in fatal.message
        if kind == "foreign":
            assert "mismatch" in fatal.message


def test_resolve() -> None:
    assert resolve(None, ((0, 1.0),), 1) == ((0, 1.0),)
    assert resolve([], ((0, 1.0),), 1) == NO_ADAPTERS
    assert resolve([(1, 0.5), (0, 2.0), (2, 0.0)], NO_ADAPTERS, 3) == ((0, 2.0), (1, 0.5))


def test_the_rota_is_fair() -> None:
    rota = Rota()
    sets: list[AdapterSet] = [(), ((0, 1.0),), ((1, 1.0),)]
    turns = [rota.pick(sets) for _ in range(30)]
    assert all(turns.count(one) == 10 for one in sets)
    assert all(len({*turns[i : i + 3]}) == 3 for i in range(28))
    assert rota.pick([((9, 1.0),), ()]) == ((9, 1.0),)  # a newcomer first
