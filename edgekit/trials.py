"""Run trials of engine settings in children, within a time, and keep what came.

One child for each value of the extra buffers, since weights are laid out when they are loaded.
"""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final

from edgekit import autotune
from edgekit.autotune import Load, Sample, Setting, Space
from edgekit.ready_gguf import model_bytes

LOAD_TIMEOUT_S: Final = 60.0
_SLOW_DISK: Final = 50_000_000
"""Bytes per second that a slow disk gives at least, for the time a load may take."""
FINALS: Final = 4
"""Trials that are kept for proving the best setting when time runs short."""
GRACE: Final = 1.3
"""A trial that takes so many times what is left is cut off."""


@dataclass(frozen=True, slots=True)
class Trials:
    """What came of it. `seconds` includes the loads; `note` says what went wrong or was cut."""

    load: Load | None
    history: Mapping[Setting, tuple[Sample, ...]]
    refused: Mapping[Setting, str]
    seconds: float
    note: str | None = None


class Child:
    """A process of `edgekit_server.engine.trial` with the model loaded. Close it."""

    def __init__(
        self,
        model: Path,
        *,
        n_gpu_layers: int,
        extra_bufts: bool,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Start loading. Raises OSError when the process cannot be started."""
        from edgekit_server.engine import spawn

        arguments = [str(model), "--n-gpu-layers", str(n_gpu_layers)]
        if not extra_bufts:
            arguments.append("--no-extra-bufts")
        self._process = subprocess.Popen(
            spawn.command("trial", *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**spawn.environment(), **(env or {})},
        )
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name="trial-answers", daemon=True).start()

    def answer(self, timeout_s: float) -> dict[str, object]:
        """Wait for the next line. Raises TrialError when the child died, hung or spoke nonsense."""
        try:
            line = self._lines.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            raise TrialError(f"gave no answer in {timeout_s:.0f} s") from None
        if line is None:
            code = self._process.wait()
            raise TrialError(f"died of signal {-code}" if code < 0 else f"ended with status {code}")
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise TrialError("gave an answer that cannot be read")
        return record

    def ask(self, job: Mapping[str, object], timeout_s: float) -> dict[str, object]:
        """Send one job and wait for its answer; raises what `answer` raises."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise TrialError("is gone") from error
        return self.answer(timeout_s)

    def close(self) -> None:
        """End the child at once: it has nothing to put away."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue  # a job that it never read

    def _listen(self) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                self._lines.put(line)
        except ValueError:
            pass  # closed under us by `close`
        self._lines.put(None)


class TrialError(Exception):
    """What a child of trials did wrong, as the end of a sentence about it."""


def run(
    model: Path,
    space: Space,
    *,
    n_gpu_layers: int,
    users: int,
    n_ctx: int,
    budget_s: float | None = None,
    several: bool = True,
    progress: Callable[[float, float], None] = lambda _done, _total: None,
) -> Trials:
    """Measure settings of `space` until nothing is left to try or the time is up. Never raises.

    `several`: there is memory for two copies of the weights, so that settings with and without
    extra buffers can be measured in turn. `progress` is told seconds, of how many.
    """
    seconds = autotune.budget_s(model_bytes(model)) if budget_s is None else budget_s
    bench = _Bench(model, n_gpu_layers, several)
    history: dict[Setting, tuple[Sample, ...]] = {}
    refused: dict[Setting, str] = {}
    note, load, visit_s = None, None, 0.0
    try:
        _, rough = bench.child(space.default.extra_bufts)
        load = autotune.size_load(rough, seconds, users, n_ctx)
        began = monotonic()
        while True:
            left = seconds - (monotonic() - began)
            hurry = left < FINALS * visit_s
            wanted = autotune.next_setting(space, history, frozenset(refused), load.users)
            setting = wanted
            if hurry:
                setting = autotune.next_setting(
                    space, history, frozenset(refused), load.users, hurry=True
                )
                if wanted is not None and wanted not in history:
                    note = f"not everything was tried in {seconds:.0f} s"
            if setting is None or (history and left < visit_s):
                break
            progress(seconds - left, seconds)
            short = autotune.prompt_only(history, setting)
            try:
                sample, took = bench.visit(setting, load, short=short, timeout_s=GRACE * left + 2)
            except TrialError as error:
                refused[setting] = str(error)
                bench.drop(setting.extra_bufts)
                continue
            history[setting] = (*history.get(setting, ()), sample)
            visit_s = max(visit_s, took)
    except (TrialError, OSError) as error:
        note = f"the child {error}"
    finally:
        bench.close()
    return Trials(load, history, refused, bench.age, note)


class _Bench:
    """The children of one search."""

    def __init__(self, model: Path, n_gpu_layers: int, several: bool) -> None:
        self._began = monotonic()
        self._model, self._layers, self._several = model, n_gpu_layers, several
        self._children: dict[bool, tuple[Child, float]] = {}

    @property
    def age(self) -> float:
        return monotonic() - self._began

    def child(self, extra_bufts: bool) -> tuple[Child, float]:
        """Return the child with this layout and its rough speed, loading the model if need be."""
        if extra_bufts not in self._children:
            if not self._several:
                self.close()
            child = Child(self._model, n_gpu_layers=self._layers, extra_bufts=extra_bufts)
            self._children[extra_bufts] = (child, 0.0)
            timeout_s = LOAD_TIMEOUT_S + model_bytes(self._model) / _SLOW_DISK
            ready = child.answer(timeout_s)
            rough = ready.get("rough_tok_s")
            if not isinstance(rough, float) or rough <= 0:
                raise TrialError(f"did not load the model: {_complaint(ready)}")
            self._children[extra_bufts] = (child, rough)
        return self._children[extra_bufts]

    def visit(
        self, setting: Setting, load: Load, *, short: bool, timeout_s: float
    ) -> tuple[Sample, float]:
        """Measure once; return the sample and the seconds it took."""
        child, _ = self.child(setting.extra_bufts)
        began = monotonic()
        found = child.ask(job(setting, load, short=short), timeout_s)
        if found.get("ok") is not True:
            raise TrialError(f"refused: {_complaint(found)}")
        return sample(found), monotonic() - began

    def drop(self, extra_bufts: bool) -> None:
        """Give up a child, whose state is not known any more."""
        found = self._children.pop(extra_bufts, None)
        if found is not None:
            found[0].close()

    def close(self) -> None:
        for extra_bufts in list(self._children):
            self.drop(extra_bufts)


def job(setting: Setting, load: Load, *, short: bool = False) -> dict[str, object]:
    """Return what the child is asked for. `short`: the prompt alone, in one piece. Pure."""
    return {
        "n_threads": setting.n_threads,
        "n_ubatch": setting.n_ubatch,
        "flash_attn": setting.flash_attn,
        "kv_unified": not setting.streams,
        "depths": [load.depths[-1]] if short else list(load.depths),
        "n_seq": load.users,
        "n_steps": 0 if short else load.n_steps,
    }


def sample(record: Mapping[str, object]) -> Sample:
    """Read the child's timing. Raises TrialError when it is not one. Pure."""
    try:
        pieces = [(int(n), float(s)) for n, s in record["prefill"]]  # type: ignore[attr-defined]
        alone = tuple((int(d), float(s)) for d, s in record["alone"])  # type: ignore[attr-defined]
        together = record["together"]
        return Sample(
            prefill_s=sum(s for _, s in pieces) / sum(n for n, _ in pieces),
            alone=alone,
            together=None if together is None else float(together),  # type: ignore[arg-type]
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise TrialError("gave an answer that cannot be read") from error


def _complaint(record: Mapping[str, object]) -> str:
    error = record.get("error")
    return str(error.get("message")) if isinstance(error, dict) else "no reason given"
