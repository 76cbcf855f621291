"""Weights, keys and values, and compute buffers against llama.cpp's own plan for every shape."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgekit import kv, memory
from edgekit.catalogue import find_device
from tests.support.dry_loads import Load, Planned, dry_loads
from tests.support.shapes import MORE, TWELVE, card
from tests.support.skeletons import write_skeleton

MIB = 1024**2
FILETYPE = "Q4_K_M"
KV_TYPES = ("f16", "q8_0", "q4_0")
ALL = [
    Load(n_ctx, users, kv_type)
    for n_ctx in (4096, 16384, 32768, 131072)
    for users in (1, 4, 16)
    for kv_type in KV_TYPES
]
SOME = [Load(4096, 1, "f16"), Load(32768, 4, "q8_0"), Load(131072, 16, "q4_0")]
ODD = [
    *(Load(n_ctx, 3, n_ubatch=n) for n_ctx in (300, 40000) for n in (128, 1024, 2048)),
    *(Load(n_ctx, 4, flash_attn=False, n_ubatch=n) for n_ctx in (4096, 32768) for n in (128, 2048)),
    *(Load(32768, n, flash_attn=f, streams=True) for n in (4, 16) for f in (True, False)),
    Load(8192, 100),
    Load(4096, 256, n_ubatch=16),
]
"""Other micro-batches, more users than tokens, scores in memory, cells of one's own."""


def check(name: str, loads: list[Load], folder: Path) -> None:
    model = card(name)
    path = write_skeleton(model, FILETYPE, folder / "skeleton.gguf")
    table = memory.weights(model, FILETYPE)
    device = replace(find_device("this"), backend="cpu", kind="cpu", free_bytes=2**50)
    for load, found in zip(loads, dry_loads(path, loads), strict=True):
        said = memory.compute_bytes(
            table.shape,
            load.n_ctx,
            load.n_seq_max,
            load.n_ubatch,
            flash_attn=load.flash_attn,
            streams=load.streams,
            kv_type=load.kv_type,
        )
        plan = memory.predict(
            model,
            device,
            table,
            n_ctx=load.n_ctx,
            users=load.n_seq_max,
            kv_type=load.kv_type,
            n_ubatch=load.n_ubatch,
            flash_attn=load.flash_attn,
            streams=load.streams,
        )
        _compare(load, found, plan, said)
        cells = kv.cells(
            load.n_ctx,
            load.n_seq_max,
            max(table.shape.windows, default=0),
            load.n_ubatch,
            streams=load.streams,
        )
        assert kv.table(table.shape, load.kv_type).bytes(cells) == found.kv


def _compare(load: Load, found: Planned, plan: memory.MemoryPlan, said: int) -> None:
    assert (plan.weights, plan.kv) == (found.weights, found.kv), load
    allowed = max(0.03 * found.compute, 16 * MIB)
    assert said == pytest.approx(found.compute, abs=allowed), load
    buffers = found.weights + found.kv + found.compute + found.output
    assert plan.total - plan.overhead == pytest.approx(buffers, rel=0.02), load
    # A plan is for up to so many users, so it may be a little more; never less by more than 1 %.
    assert found.compute * 0.99 - MIB // 2 <= plan.compute - found.output, load


@pytest.mark.parametrize("name", TWELVE)
def test_twelve_shapes(name: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    check(name, SOME, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TWELVE, *MORE])
def test_every_cell_of_twelve_shapes(name: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    check(name, [*ALL, *ODD], tmp_path)
