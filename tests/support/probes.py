"""Inputs that would end the process if the engine's own code gave them to llama.cpp unchecked.

Run as a program it reads names of probes from standard input and answers each with a line. A
guard that is missing ends this process, not the tests'. Each probe opens a context of its own,
does what must not be done, and then decodes something ordinary in the same context.
"""

from __future__ import annotations

import resource
import sys
import traceback
from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgekit_server.engine import native
from edgekit_server.engine.batch import Batch
from edgekit_server.engine.cells import Cells
from edgekit_server.engine.options import ContextOptions, ModelOptions
from edgekit_server.engine.wire import Sampling
from edgekit_server.errors import BadModelError, ConfigError
from tests.support.engine import Driver, driver

N_CTX, N_SEQ_MAX, N_BATCH = 256, 4, 64


def raises(
    kinds: type[Exception] | tuple[type[Exception], ...], call: Callable[[], object]
) -> None:
    """Check that a guard speaks before llama.cpp does."""
    try:
        answer = call()
    except kinds:
        return
    raise AssertionError(f"no guard: {answer!r} came back")


def one_row(token: int, seq: int, position: int, *, output: bool = True) -> Batch:
    batch = Batch(N_BATCH)
    batch.add(seq, position, array("i", [token]), output=output)
    return batch


def code_of(engine: Driver, batch: Batch) -> int:
    """Decode; the batch lives until that is done, as C reads its arrays."""
    return engine.context.decode(batch.ready())


def too_many_rows(engine: Driver) -> None:
    batch = Batch(N_BATCH + 1)
    batch.add(0, 0, array("i", range(8, 8 + N_BATCH + 1)), output=True)
    raises(ValueError, lambda: code_of(engine, batch))
    raises(ValueError, lambda: Batch(N_BATCH).add(0, 0, array("i", [9] * 65), output=True))


def too_many_outputs(engine: Driver) -> None:
    batch = Batch(N_BATCH)
    for position in range(engine.context.n_outputs_max + 1):
        batch.add(0, position, array("i", [9]), output=True)
    raises(ValueError, lambda: code_of(engine, batch))
    raises(ValueError, lambda: engine.context.logits(engine.context.n_outputs_max + 1))


def options(**changes: object) -> None:
    given = {"n_ctx": 256, "n_seq_max": 4, "n_batch": 64, "n_ubatch": 32, "n_threads": 1}
    raises(ConfigError, ContextOptions(**{**given, **changes}).check)  # type: ignore[arg-type]


def outputs_below_sequences(engine: Driver) -> None:
    options(n_outputs_max=3)
    options(n_outputs_max=65)


def batch_below_sequences(engine: Driver) -> None:
    options(n_batch=3, n_ubatch=3)


def no_sequence_in_a_row(engine: Driver) -> None:
    """No way leads there: each row has one sequence, and that array cannot be written."""
    batch = one_row(9, 0, 0)
    raises(ValueError, lambda: batch._n_seq_id.__setitem__(0, 0))
    assert code_of(engine, batch) == 0
    zeros = np.zeros(N_BATCH, np.int32)
    raises(
        ValueError,
        lambda: native.batch_struct(batch.token, batch.pos, zeros, batch._seq_ptr, batch.output),
    )


def closed_context(engine: Driver) -> None:
    log = native.capture_log()
    context_options = ContextOptions(64, 1, 16, 16, 1)
    with native.opened(ModelOptions(Path(MODEL), 0), context_options, log) as (model, context):
        chain = native.chain([("dist", (1,))])
        chain.close()
        context.close()
        model.close()
        batch = one_row(9, 0, 0)
        for call in (
            lambda: context.decode(batch.ready()),
            lambda: context.logits(1),
            lambda: context.sample(chain, 0),
            lambda: context.seq_rm(0),
            lambda: context.seq_length(0),
            lambda: chain.accept(9),
            lambda: model.tokenize(b"ab", special=True),
            lambda: model.metadata("general.name"),
            lambda: native.Context(model, context_options, log),
        ):
            raises((ValueError, ConfigError, BadModelError), call)


def kv_type_out_of_enum(engine: Driver) -> None:
    for name in ("q9_9", "q4_k", "", "99"):
        options(type_k=name)
        options(type_v=name)


def empty_batch(engine: Driver) -> None:
    raises(ValueError, lambda: code_of(engine, Batch(N_BATCH)))


def bad_tokens(engine: Driver) -> None:
    for token in (-1, engine.model.n_vocab, 2**31 - 1):
        assert code_of(engine, one_row(token, 0, 0)) == -1


def bad_sequences_in_a_batch(engine: Driver) -> None:
    for seq in (-1, N_SEQ_MAX, 255, 256, 2**31 - 1):
        assert code_of(engine, one_row(9, seq, 0)) == -1


def position_gap(engine: Driver) -> None:
    assert code_of(engine, one_row(9, 0, 0)) == 0
    assert code_of(engine, one_row(9, 0, 2)) == -1
    batch = Batch(N_BATCH)
    batch.add(0, 3, array("i", [9]), output=False)
    batch.add(0, 1, array("i", [9]), output=True)
    assert code_of(engine, batch) == -1
    engine.context.seq_rm(0)


def accepted_in_silence(engine: Driver) -> None:
    """llama.cpp takes a first position of 5 and one position twice; our table never asks."""
    real = engine.context.decode
    seen: dict[int, int] = {}

    def decode(batch: object) -> int:
        made = engine.loop._batch
        for row in range(made.n_rows):
            seq, position = int(made.seq[row]), int(made.pos[row])
            assert position == engine.context.seq_length(seq) + seen.get(seq, 0)
            seen[seq] = seen.get(seq, 0) + 1
        seen.clear()
        return real(batch)  # type: ignore[arg-type]

    engine.context.decode = decode  # type: ignore[method-assign]
    for n in (1, 5, 70, 20):
        engine.submit(range(10, 10 + n), 10)
    engine.run()


def context_full(engine: Driver) -> None:
    engine.submit(range(8, 208), 1)
    engine.run()
    batch = Batch(N_BATCH)
    batch.add(1, 0, array("i", range(8, 72)), output=True)
    before = [engine.context.seq_length(seq) for seq in range(N_SEQ_MAX)]
    assert code_of(engine, batch) == 1
    assert [engine.context.seq_length(seq) for seq in range(N_SEQ_MAX)] == before
    engine.loop.table.drop_oldest_idle()


def sequences_out_of_range(engine: Driver) -> None:
    context = engine.context
    for seq in (-1, N_SEQ_MAX, 255, 256, 2**31 - 1):
        for call in (
            lambda seq=seq: context.seq_rm(seq),
            lambda seq=seq: context.seq_cp(seq, 0, 1),
            lambda seq=seq: context.seq_cp(0, seq, 1),
            lambda seq=seq: context.seq_add(seq, 0, 0),
            lambda seq=seq: context.seq_length(seq),
            lambda seq=seq: context.save(seq),
            lambda seq=seq: context.load(seq, np.zeros(64, np.uint8)),
        ):
            raises(IndexError, call)
    raises(ValueError, lambda: context.seq_cp(0, 0, 1))
    raises(ValueError, lambda: context.seq_add(0, 0, -1))


def partial_copy_in_streams(engine: Driver) -> None:
    split = ContextOptions(1024, N_SEQ_MAX, N_BATCH, 32, 1, kv_unified=False)
    log = native.capture_log()
    with native.opened(ModelOptions(Path(MODEL), 0), split, log) as (_, context):
        batch = Batch(N_BATCH)
        batch.add(0, 0, array("i", range(8, 48)), output=True)
        assert context.decode(batch.ready()) == 0
        context.seq_cp(0, 1, 17)
        assert context.seq_length(1) == 17
        batch = one_row(9, 1, 17)
        assert context.decode(batch.ready()) == 0
        raises(IndexError, lambda: context.seq_cp(0, N_SEQ_MAX, 1))


def coupled_sequences(engine: Driver) -> None:
    """A row cannot belong to two sequences: there is one address and one count per row."""
    batch = one_row(9, 0, 0)
    assert (batch._n_seq_id == 1).all()
    assert len(set(batch._seq_ptr.tolist())) == N_BATCH


def sample_without_logits(engine: Driver) -> None:
    chain = native.chain([("dist", (1,))])
    raises(ValueError, lambda: engine.context.sample(chain, 0))
    batch = Batch(N_BATCH)
    batch.add(0, 0, array("i", [9, 10, 11]), output=True)
    assert code_of(engine, batch) == 0
    for row in (0, 1, 3, -5, 2**31 - 1):
        raises(ValueError, lambda row=row: engine.context.sample(chain, row))
    assert 0 <= engine.context.sample(chain, 2) < engine.model.n_vocab
    chain.close()
    engine.context.seq_rm(0)


def chain_without_a_selector(engine: Driver) -> None:
    raises(ValueError, lambda: native.chain([]))
    raises(ValueError, lambda: native.chain([("top_k", (4,))]))
    raises(ValueError, lambda: native.chain([("dist", (1,)), ("top_k", (4,))]))


def bad_ids_shown_to_a_chain(engine: Driver) -> None:
    penalties = ("penalties", (engine.model.n_vocab, 64, 1.5, 0.5, 0.5))
    chain = native.chain([penalties, ("dist", (1,))])
    for token in (-1, engine.model.n_vocab, 2**31 - 1):
        chain.accept(token)
    assert code_of(engine, one_row(9, 0, 0)) == 0
    assert 0 <= engine.context.sample(chain, 0) < engine.model.n_vocab
    chain.close()
    engine.context.seq_rm(0)


def rows_of_no_number(engine: Driver) -> None:
    """NaN and minus infinity everywhere: an error for that request, not some token."""
    real = engine.context.logits
    for value in (float("nan"), float("-inf"), float("inf")):
        for sampling in (Sampling(temperature=0.0), Sampling(seed=1), Sampling(top_k=0, seed=1)):

            def broken(n_rows: int, value: float = value) -> native.Logits:
                rows = real(n_rows)
                rows[:] = value
                return rows

            engine.context.logits = broken  # type: ignore[method-assign]
            request = engine.submit([9, 10], 3, sampling)
            engine.run()
            assert engine.finish(request) == "error", (value, sampling)
    engine.context.logits = real  # type: ignore[method-assign]


def corrupt_state(engine: Driver) -> None:
    context: Cells = engine.context
    engine.submit(range(8, 40), 1)
    engine.run()
    blob = context.save(0)
    assert blob is not None
    rng = np.random.default_rng(3)
    broken = [blob[:n].copy() for n in (1, 8, 20, len(blob) // 2, len(blob) - 1)]
    broken += [rng.integers(0, 256, n).astype(np.uint8) for n in (1, 64, len(blob))]
    broken += [np.zeros(len(blob), np.uint8), np.full(len(blob), 255, np.uint8)]
    for at in range(64):
        flipped = blob.copy()
        flipped[at] ^= 0xFF
        broken.append(flipped)
    for bad in broken:
        context.load(2, bad)
        context.seq_rm(2)
    assert context.load(2, blob)
    assert context.seq_length(2) == context.seq_length(0)
    context.seq_rm(2)


def no_context(engine: Driver) -> None:
    """What llama.cpp answers with NULL."""
    model = ModelOptions(Path(MODEL), 0)
    base = {"n_ctx": 256, "n_seq_max": 4, "n_batch": 64, "n_ubatch": 32, "n_threads": 1}
    for change in ({"type_v": "q8_0", "flash_attn": False}, {"n_ctx": 2**22}):
        if "n_ctx" in change:  # a GiB of cells in less than that
            resource.setrlimit(resource.RLIMIT_AS, (_mapped_bytes() + 2**29, -1))
        log = native.capture_log()
        made = ContextOptions(**{**base, **change})  # type: ignore[arg-type]

        def open_it(made: ContextOptions = made, log: native.Log = log) -> None:
            with native.opened(model, made, log):
                pass

        raises((BadModelError, ConfigError), open_it)
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    options(n_seq_max=257, n_batch=512)
    for n_ctx in (0, -1, 2**27, 2**31, 2**32, 2**40):
        options(n_ctx=n_ctx)


def _mapped_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


PROBES: dict[str, Callable[[Driver], None]] = {
    name: value
    for name, value in list(globals().items())
    if getattr(value, "__annotations__", None) == {"engine": "Driver", "return": "None"}
}


def main() -> None:
    for line in sys.stdin:
        try:
            with driver(Path(MODEL), n_ctx=N_CTX, n_seq_max=N_SEQ_MAX, n_batch=N_BATCH) as engine:
                PROBES[line.strip()](engine)
                engine.context.__dict__.pop("decode", None)
                request = engine.submit([9, 10], 3, cache=False)
                engine.run()
                assert engine.finish(request) == "length", "the context is of no use any more"
            answer = "ok"
        except Exception:
            answer = repr(traceback.format_exc())
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    MODEL = sys.argv[1]
    main()
