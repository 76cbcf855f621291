"""The kinds of KV memory: which one is chosen, and that all compute the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit_server.engine import kvmode, wire
from edgekit_server.engine.options import ContextOptions
from edgekit_server.errors import ConfigError
from tests.support.child import child, settings
from tests.support.engine import driver
from tests.support.gguf_models import write_model

PROMPTS = [np.random.default_rng(6).integers(8, 264, n).tolist() for n in (3, 60, 150, 200)]


@pytest.mark.parametrize(
    ("mode", "n_ctx", "n_seq_max", "n_ctx_train", "cuts", "unified", "word"),
    [
        ("auto", 8192, 4, 2048, True, True, "held once"),
        ("auto", 65536, 8, 2048, True, True, "held once"),
        ("auto", 65536, 16, 4096, True, False, "all the model can use"),
        ("auto", 65536, 16, 32768, True, True, "4096 tokens each"),
        ("auto", 65536, 16, 4096, False, True, "cannot be copied"),
        ("unified", 65536, 16, 4096, True, True, "as configured"),
        ("streams", 8192, 4, 32768, True, False, "2048 tokens for each of 4"),
    ],
)
def test_the_choice(
    mode: str, n_ctx: int, n_seq_max: int, n_ctx_train: int, cuts: bool, unified: bool, word: str
) -> None:
    chosen, reason = kvmode.choose(
        mode, n_ctx=n_ctx, n_seq_max=n_seq_max, n_ctx_train=n_ctx_train, cuts_anywhere=cuts
    )
    assert chosen is unified
    assert word in reason


def test_no_such_mode() -> None:
    with pytest.raises(ConfigError, match="none of"):
        kvmode.choose("both", n_ctx=1, n_seq_max=1, n_ctx_train=1, cuts_anywhere=True)


def test_quantized_values_need_flash_attention() -> None:
    options = ContextOptions(1024, 2, 64, 32, 1, type_v="q8_0", flash_attn=False)
    with pytest.raises(ConfigError, match="flash attention") as caught:
        options.check()
    assert caught.value.hint
    ContextOptions(1024, 2, 64, 32, 1, type_v="q8_0").check()


def test_streams_have_shares(tiny_model: Path) -> None:
    with driver(tiny_model, n_ctx=1000, n_seq_max=3, unified=False) as engine:
        assert engine.context.n_ctx_seq == kvmode.stream_share(1000, 3) == 512
        request = engine.submit(PROMPTS[2], 10_000)
        engine.run()
        assert len(engine.tokens(request)) == 512 - 150


def test_streams_compute_the_same(tiny_model: Path) -> None:
    with driver(tiny_model, exact=True) as engine:
        alone = [engine.alone(prompt, 20) for prompt in PROMPTS]
        longer = engine.alone([*PROMPTS[2], *alone[2], 40, 41], 20)
        edited = engine.alone([*PROMPTS[2][:80], 40, 41], 20)
    with driver(tiny_model, exact=True, unified=False) as engine:
        ids = [engine.submit(prompt, 20) for prompt in PROMPTS]
        engine.run()
        assert [engine.tokens(i) for i in ids] == alone
        in_place = engine.submit([*PROMPTS[2], *alone[2], 40, 41], 20)
        engine.run()
        assert engine.outputs[in_place][0].n_cached == 169
        assert engine.tokens(in_place) == longer
        copied = engine.submit([*PROMPTS[2][:80], 40, 41], 20)
        engine.run()
        assert engine.outputs[copied][0].n_cached == 80
        assert engine.tokens(copied) == edited
        for resident in engine.loop.table.residents:
            assert engine.context.seq_length(resident.seq) == len(resident.tokens)


def test_a_copy_that_costs_more_than_it_saves(tiny_model: Path) -> None:
    with driver(tiny_model, unified=False) as engine:
        assert engine.loop.table.copy_min == 32
        first = engine.submit(PROMPTS[2], 20)
        engine.loop.step()
        other = engine.submit([*PROMPTS[2][:31], 9], 5)
        engine.run()
        assert engine.outputs[first][0].n_cached == engine.outputs[other][0].n_cached == 0


def test_guards(tiny_model: Path) -> None:
    """What would end the process in C is an error here."""
    with driver(tiny_model, n_seq_max=2, unified=False) as engine:
        context = engine.context
        for call in (
            lambda: context.seq_rm(2),
            lambda: context.seq_cp(0, 2, 1),
            lambda: context.seq_cp(1, 1, 1),
            lambda: context.seq_add(5, 1, -1),
            lambda: context.seq_add(0, 1, -2),
            lambda: context.save(-1),
        ):
            with pytest.raises((IndexError, ValueError)):
                call()
        engine.submit(PROMPTS[1], 5)
        engine.run()
        blob = context.save(0)
        assert blob is not None
        context.seq_cp(0, 1, 20)  # the bytes are copied by the next decode
        assert context.save(1) is None
        assert not context.load(0, blob)
        engine.alone([9], 1)
        assert context.save(1) is not None
        for bad in (blob[:100], blob[:0], np.zeros_like(blob)):
            assert not context.load(1, bad)
        assert context.load(1, blob)
        assert context.seq_length(1) == context.seq_length(0)


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_quantized_cells(tmp_path: Path, kind: str) -> None:
    """Prefixes, copies and streams work with them as with plain ones."""
    path = write_model(tmp_path / "wide.gguf", head_dim=32)
    for unified in (True, False):
        with driver(path, type_k=kind, type_v=kind, unified=unified) as engine:
            first = engine.submit(PROMPTS[2], 10)
            engine.run()
            assert engine.finish(first) == "length"
            again = engine.submit([*PROMPTS[2][:60], *PROMPTS[1]], 10)
            engine.run()
            assert engine.outputs[again][0].n_cached == 60
            assert engine.tokens(again) == engine.alone([*PROMPTS[2][:60], *PROMPTS[1]], 10)


@pytest.mark.parametrize(
    ("mode", "n_ctx_seq", "reason"),
    [("auto", 1024, "unified: "), ("streams", 256, "streams, as configured: 256 tokens")],
)
def test_the_front_is_told(tiny_model: Path, mode: str, n_ctx_seq: int, reason: str) -> None:
    with child(settings(tiny_model, n_ctx=1024, n_seq_max=4, kv_mode=mode)) as engine:
        hello = engine.next()
        assert isinstance(hello, wire.Hello)
        assert hello.n_ctx_seq == n_ctx_seq
        assert hello.reasons["kv"].startswith(reason)
        assert hello.reasons["kv_cache"].startswith("none")
        too_long = engine.answer(wire.Generate(1, [9] * 300, 1)) if mode == "auto" else None
        assert too_long is None or too_long[-1].finish == "length"
