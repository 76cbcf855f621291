"""An engine without processes: the real loop on a real tiny model, stepped by hand."""

from __future__ import annotations

import itertools
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from edgekit_server.engine import native, vocabulary
from edgekit_server.engine.batch import Batch
from edgekit_server.engine.checkpoints import Kind
from edgekit_server.engine.hostcache import HostCache
from edgekit_server.engine.loop import Loop
from edgekit_server.engine.options import ContextOptions, ModelOptions
from edgekit_server.engine.request import Request
from edgekit_server.engine.sampling import Chooser, Matcher
from edgekit_server.engine.speculate import Speculator, n_outputs
from edgekit_server.engine.wire import Output, Sampling, Step

GREEDY = Sampling(temperature=0.0)


@dataclass
class Driver:
    """Steps a loop and sorts its outputs by request."""

    model: native.Model
    context: native.Context
    tables: vocabulary.Vocabulary
    loop: Loop
    outputs: dict[int, list[Output]] = field(default_factory=lambda: defaultdict(list))
    steps: list[Step] = field(default_factory=list)
    ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def submit(
        self,
        prompt: Sequence[int],
        n: int,
        sampling: Sampling = GREEDY,
        *,
        cache: bool = True,
        ends: frozenset[int] = frozenset(),
        arrived: float = 0.0,
        speculate: bool = True,
        matcher: Matcher | None = None,
        deadline: float | None = None,
        shift_at: int | None = None,
    ) -> int:
        tokens = array("i", prompt)
        chooser = Chooser(
            sampling,
            tokens,
            n_vocab=self.model.n_vocab,
            n_ctx=self.context.n_ctx_seq,
            vocab=self.model.vocab,
            matcher=matcher,
        )
        request = Request(
            id=next(self.ids),
            tokens=tokens,
            limit=len(tokens) + n if shift_at else min(len(tokens) + n, self.context.n_ctx_seq),
            shift_at=shift_at,
            chooser=chooser,
            arrived=arrived,
            ends=ends,
            cache_prompt=cache,
            speculate=speculate,
            deadline=deadline,
        )
        self.loop.submit(request)
        return request.id

    def emit(self, step: Step) -> None:
        self.steps.append(step)
        for output in step.outputs:
            self.outputs[output.id].append(output)

    def run(self, most: int = 10_000) -> None:
        for _ in range(most):
            if not self.loop.step():
                return
        raise AssertionError("the loop does not come to rest")

    def tokens(self, request_id: int) -> list[int]:
        return [token for output in self.outputs[request_id] for token in output.tokens]

    def finish(self, request_id: int) -> str | None:
        return self.outputs[request_id][-1].finish

    def alone(self, prompt: Sequence[int], n: int, sampling: Sampling = GREEDY) -> list[int]:
        """Run one request with nothing else around and no prefix kept."""
        request_id = self.submit(prompt, n, sampling, cache=False)
        self.run()
        return self.tokens(request_id)


@contextmanager
def driver(
    path: Path,
    *,
    n_ctx: int = 2048,
    n_seq_max: int = 4,
    n_batch: int = 256,
    n_ubatch: int = 64,
    max_queue: int = 100,
    use_extra_bufts: bool = True,
    reuse: bool = True,
    n_threads: int = 1,
    speculator: Speculator | None = None,
    unified: bool = True,
    store: HostCache | None = None,
    type_k: str = "f16",
    type_v: str = "f16",
    exact: bool = False,
) -> Iterator[Driver]:
    """`exact`: F32 cells without flash attention, which sums in F16 in the order of the cells:
    then a result does not depend on where in memory a sequence lies, up to 1e-5.
    """
    log = native.capture_log()
    options = ContextOptions(
        n_ctx=n_ctx,
        n_seq_max=n_seq_max,
        n_batch=n_batch,
        n_ubatch=n_ubatch,
        n_threads=n_threads,
        n_outputs_max=n_outputs(n_seq_max, n_batch) if speculator else None,
        kv_unified=unified,
        type_k="f32" if exact else type_k,
        type_v="f32" if exact else type_v,
        flash_attn=False if exact else None,
    )
    with native.opened(ModelOptions(path, 0, use_extra_bufts), options, log) as (m, c):
        tables = vocabulary.read(m)
        made: Driver

        def emit(step: Step) -> None:
            made.emit(step)

        loop = Loop(
            c,
            tables,
            emit,
            reuse=reuse,
            kind=Kind(unified, m.n_swa, m.is_recurrent),
            store=store,
            max_queue=max_queue,
            speculator=speculator,
        )
        made = Driver(m, c, tables, loop)
        yield made


def plain_greedy(context: native.Context, prompt: Sequence[int], n: int) -> list[int]:
    """The simplest use of llama.cpp there is: one sequence, one token at a time."""
    context.seq_rm(0)
    batch = Batch(context.n_batch)
    tokens, done = array("i", prompt), 0
    while len(tokens) < len(prompt) + n:
        while done < len(tokens):
            part = tokens[done : done + context.n_batch]
            batch.clear()
            batch.add(0, done, part, output=done + len(part) == len(tokens))
            assert context.decode(batch.ready()) == 0
            done += len(part)
        tokens.append(int(context.logits(1)[0].argmax()))
    context.seq_rm(0)
    return tokens[len(prompt) :].tolist()
