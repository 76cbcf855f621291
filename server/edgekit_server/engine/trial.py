"""How fast is this model with these settings? `python -m edgekit_server.engine.trial MODEL`

The model is loaded once, since that takes longest; each job makes a context of its own, reads a
prompt in pieces beside the earlier prompts of the other sequences, draws single tokens after each
piece and then for all sequences at once. Jobs are JSON objects: a list in --json-settings, or one
a line on standard input, which ends the child when it closes. Answers are JSON lines: one when
the model is loaded, then one per job. The caller bounds the time: it kills the child and keeps
what came.
"""

from __future__ import annotations

import argparse
import json
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import median
from time import perf_counter

from edgekit_server import egress
from edgekit_server.engine import native, threads
from edgekit_server.engine.batch import Batch
from edgekit_server.engine.log import Log
from edgekit_server.engine.options import ContextOptions, ModelOptions
from edgekit_server.errors import EngineDiedError, ModelMissingError, ServerError

N_WARM = 64
"""Rows of the first decode, which touches fresh memory and is not counted."""


@dataclass(frozen=True, slots=True)
class Job:
    """One context to try. `depths`: prompt lengths at which single tokens are timed."""

    n_threads: int
    n_ubatch: int = 512
    n_batch: int = 2048
    flash_attn: bool | None = None
    kv_unified: bool = True
    type_k: str = "f16"
    type_v: str = "f16"
    depths: tuple[int, ...] = (512, 1024)
    n_seq: int = 1
    """Sequences of the last depth that draw together; 1: none but the first."""
    n_steps: int = 6
    """Tokens drawn at each depth; 0: the prompt only."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds: each piece of the prompt as (tokens, seconds), each step as (depth, seconds)."""

    prefill: tuple[tuple[int, float], ...]
    alone: tuple[tuple[int, float], ...]
    together: float | None
    """A step of all sequences at the last depth."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the jobs; return the exit code of the error tree, 0 if the model was loaded."""
    egress.follow()
    parser = argparse.ArgumentParser(prog="edgekit_server.engine.trial")
    parser.add_argument("model", type=Path)
    parser.add_argument("--no-extra-bufts", action="store_true", help="no repacked weights")
    parser.add_argument("--n-gpu-layers", type=int, default=-1)
    parser.add_argument("--json-settings", help="a list of jobs, instead of standard input")
    options = parser.parse_args(arguments)
    model_options = ModelOptions(options.model, options.n_gpu_layers, not options.no_extra_bufts)
    began = perf_counter()
    log = native.capture_log()
    try:
        if not options.model.is_file():
            raise ModelMissingError(f"no file {options.model}")
        model = native.Model(model_options, log)
    except ServerError as error:
        _say({"error": {"code": error.code, "message": error.message}})
        return error.exit_code
    try:
        load_s = perf_counter() - began
        _say({"ready": True, "load_s": load_s, "rough_tok_s": rough_rate(model, log)})
        for job in _jobs(options.json_settings):
            _say(_answer(model, job, log))
    finally:
        model.close()
    return 0


def measure(model: native.Model, job: Job, log: Log) -> Timing:
    """Time one job. Raises ServerError where llama.cpp refuses the settings."""
    end = job.depths[-1]
    # One more cell for each drawn token, in every sequence; streams share n_ctx evenly.
    per_seq = -(-(end + job.n_steps + N_WARM) // 256) * 256
    context = native.Context(
        model,
        ContextOptions(
            n_ctx=job.n_seq * per_seq,
            n_seq_max=job.n_seq,
            n_batch=max(job.n_batch, job.n_ubatch),
            n_ubatch=job.n_ubatch,
            n_threads=job.n_threads,
            type_k=job.type_k,
            type_v=job.type_v,
            flash_attn=job.flash_attn,
            kv_unified=job.kv_unified,
        ),
        log,
    )
    try:
        return _time(_Stand(context), job)
    finally:
        context.close()


def rough_rate(model: native.Model, log: Log) -> float:
    """Return prefill tokens per second of a short prompt: what the caller sizes its jobs by."""
    n_threads = threads.default_threads()[0]
    job = Job(n_threads, n_ubatch=N_WARM, n_batch=N_WARM, depths=(N_WARM,), n_steps=0)
    ((tokens, seconds),) = measure(model, job, log).prefill
    return tokens / seconds


def _time(stand: _Stand, job: Job) -> Timing:
    stand.read(0, N_WARM)
    stand.cut(0, 0)
    if job.n_seq > 1:
        # A server keeps earlier prompts: shared memory without flash attention pays for them all.
        stand.read(0, job.depths[0])
        stand.copy_first(job.n_seq)
        stand.cut(0, 0)
    prefill, alone, done = [], [], 0
    for depth in job.depths:
        prefill.append((depth - done, stand.read(done, depth)))
        done = depth
        if job.n_steps:
            alone.append((depth, stand.draw(1, depth, job.n_steps)))
            stand.cut(0, depth)
    together = None
    if job.n_steps and job.n_seq > 1:
        stand.copy_first(job.n_seq)
        together = stand.draw(job.n_seq, done, job.n_steps)
    return Timing(tuple(prefill), tuple(alone), together)


class _Stand:
    """A context under test."""

    def __init__(self, context: native.Context) -> None:
        self.context = context
        self.batch = Batch(context.n_batch)
        self.n_vocab = context.n_vocab

    def read(self, start: int, end: int) -> float:
        """Read positions start..end of the first sequence; return the seconds."""
        began = perf_counter()
        while start < end:
            stop = min(end, start + self.context.n_batch)
            # Any tokens do: what is computed costs the same.
            tokens = array("i", ((7 * i + 3) % self.n_vocab for i in range(start, stop)))
            self.batch.clear()
            self.batch.add(0, start, tokens, output=stop == end)
            self._decode()
            start = stop
        self.context.logits(1)
        return perf_counter() - began

    def draw(self, n_seq: int, depth: int, n_steps: int) -> float:
        """Draw from the first `n_seq` sequences at once; return the median seconds of a step."""
        times = []
        for step in range(n_steps):
            began = perf_counter()
            self.batch.clear()
            for seq in range(n_seq):
                token = (11 * step + 5 * seq + 3) % self.n_vocab
                self.batch.add(seq, depth + step, array("i", (token,)), output=True)
            self._decode()
            self.context.logits(n_seq)
            times.append(perf_counter() - began)
        # The first step after a prompt builds its graph anew.
        return median(times[1:] or times)

    def cut(self, seq: int, length: int) -> None:
        self.context.seq_rm(seq, length)

    def copy_first(self, n_seq: int) -> None:
        """Give every sequence cells of its own that hold what the first one holds."""
        state = self.context.save(0)
        for seq in range(1, n_seq):
            if state is None or not self.context.load(seq, state):
                raise EngineDiedError("a sequence could not be copied", code="state_failed")

    def _decode(self) -> None:
        code = self.context.decode(self.batch.ready())
        if code != 0:
            raise EngineDiedError(f"llama_decode returned {code}", code="decode_failed")


def _answer(model: native.Model, record: object, log: Log) -> dict[str, object]:
    try:
        timing = measure(model, parse_job(record), log)
    except (ServerError, ValueError) as error:
        code = error.code if isinstance(error, ServerError) else "bad_job"
        return {"ok": False, "error": {"code": code, "message": str(error)}}
    return {
        "ok": True,
        "prefill": timing.prefill,
        "alone": timing.alone,
        "together": timing.together,
    }


def parse_job(record: object) -> Job:
    """Rebuild a job from JSON. Raises ValueError for anything that is none."""
    known = {f.name for f in fields(Job)}
    if not isinstance(record, dict) or not record.keys() <= known or "n_threads" not in record:
        raise ValueError(f"a job has n_threads and some of {', '.join(sorted(known))}")
    depths = record.get("depths", (512, 1024))
    numbers = [record["n_threads"], record.get("n_seq", 1), record.get("n_ubatch", 512)]
    if not isinstance(depths, list | tuple) or not depths:
        raise ValueError("depths is a list of prompt lengths")
    if any(type(n) is not int or n < 1 for n in [*numbers, *depths]):
        raise ValueError("threads, sequences, ubatch and depths are whole numbers from 1")
    if list(depths) != sorted(set(depths)):
        raise ValueError("depths must ascend")
    return replace(Job(**record), depths=tuple(depths))


def _jobs(text: str | None) -> Iterator[object]:
    if text is not None:
        jobs = json.loads(text)
        yield from jobs if isinstance(jobs, list) else [jobs]
        return
    for line in sys.stdin:
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except ValueError:
            yield None


def _say(record: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
