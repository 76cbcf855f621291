"""Is this build of the engine sound here, and no slower than the installed one?

Sound: the canary decodes pocket in the two file types whose kernels a bad build breaks. Speed: the
same default settings on the same files, this build and the installed one in turn.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean, median
from tempfile import TemporaryDirectory
from typing import Final

from edgekit import autotune, trials
from edgekit.autotune import Load, Sample, Setting
from edgekit.errors import BadDataError, EdgekitError, EngineFailedError
from edgekit.machine import Canary

FILETYPES: Final = ("Q4_0", "Q4_K_M")
ROUNDS: Final = 5
LOAD: Final = Load((256, 512), users=1)
ANSWER_TIMEOUT_S: Final = 60.0
SLOWEST: Final = 0.97
"""A new build must reach this share of the old one's speed over all files (geometric mean)."""
SLOWEST_FILE: Final = 0.75
"""And this on each; the trial of one small model is noisy on a busy machine."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """Medians in tokens per second."""

    prefill_tok_s: float
    decode_tok_s: float
    request_s: float


@dataclass(frozen=True, slots=True)
class Compared:
    """One file on the new build and on the installed one; None: that one does not run it."""

    file: str
    new: Speeds | None
    old: Speeds | None

    @property
    def gain(self) -> float | None:
        """Times as fast as the installed build on a typical request."""
        return self.old.request_s / self.new.request_s if self.new and self.old else None


@dataclass(frozen=True, slots=True)
class Verdict:
    """`canaries` by file type. `install` says what to do, `reason` why."""

    canaries: Mapping[str, Canary]
    compared: tuple[Compared, ...]
    install: bool
    reason: str


@contextmanager
def unpacked(wheel: Path) -> Iterator[Path]:
    """Give a temporary folder with the wheel's packages. Raises BadDataError for no wheel."""
    with TemporaryDirectory(prefix="edgekit-engine-") as place:
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(place)
        except (OSError, zipfile.BadZipFile) as error:
            raise BadDataError(
                f"{wheel.name} cannot be unpacked: {error}",
                code="bad_wheel",
                hint="build it again with --rebuild",
            ) from error
        yield Path(place)


@contextmanager
def pocket_files(library: Path | None) -> Iterator[dict[str, Path]]:
    """Give pocket in each of FILETYPES, converted in children.

    By the installed engine; by `library` where there is none, or one that cannot even do that.
    Raises what the converter raises.
    """
    with TemporaryDirectory(prefix="edgekit-") as place:
        try:
            files = _converted(Path(place))
        except EdgekitError:
            if library is None:
                raise
            with _first_on_path(library):
                files = _converted(Path(place))
        yield files


def _converted(place: Path) -> dict[str, Path]:
    from edgekit import pocket
    from edgekit.converter import convert

    files = {filetype: place / f"pocket-{filetype}.gguf" for filetype in FILETYPES}
    for filetype, file in files.items():
        convert(pocket.folder(), file, filetype)
    return files


def verify(library: Path, files: Mapping[str, Path], *, installed: bool) -> Verdict:
    """Try `library`; `installed`: compare it with the engine that is there. Takes seconds."""
    from edgekit.probe.canary import try_engine

    new = {name: try_engine(file, library=library)[0] for name, file in files.items()}
    old = {name: try_engine(file)[0] for name, file in files.items()} if installed else {}
    compared = []
    for name, file in files.items():
        if new[name].ok:
            compared.append(_compare(name, file, library, new[name], old.get(name)))
    install, reason = decide(new, old, compared)
    return Verdict(new, tuple(compared), install, reason)


def decide(
    new: Mapping[str, Canary], old: Mapping[str, Canary], compared: Sequence[Compared]
) -> tuple[bool, str]:
    """Say whether to install, and why. Pure.

    A build that dies, or needs its extra buffers off where the installed one does not, is
    refused; so is one that is slower.
    """
    for name, canary in new.items():
        if canary.ok is not True:
            return False, f"the new build fails on {name}: {canary.reason}"
        before = old.get(name)
        fair = before is None or before.use_extra_bufts is not True
        if canary.use_extra_bufts is False and not fair:
            return False, f"the new build crashes on {name} where the installed one does not"
    broken = [name for name, canary in old.items() if canary.ok is not True]
    if broken:
        return True, f"the installed build fails on {', '.join(broken)}; the new one works"
    gains = {c.file: c.gain for c in compared if c.gain is not None}
    if not gains:
        return True, "the new build works; there was none to compare it with"
    words = ", ".join(f"{name} {gain:.2f}x" for name, gain in gains.items())
    slower = geometric_mean(gains.values()) < SLOWEST or min(gains.values()) < SLOWEST_FILE
    if slower and not _mends(new, old):
        return False, f"the new build is slower than the installed one: {words} as fast"
    return True, f"the new build works; against the installed one {words} as fast"


def _mends(new: Mapping[str, Canary], old: Mapping[str, Canary]) -> bool:
    """Whether something that crashed does not any more."""
    return any(new[n].use_extra_bufts and old[n].use_extra_bufts is False for n in old if n in new)


def _compare(name: str, file: Path, library: Path, new: Canary, old: Canary | None) -> Compared:
    """Measure both builds on one file, in turn. A trial that fails leaves its side None."""
    sides: dict[str, tuple[trials.Child, Setting]] = {}
    samples: dict[str, list[Sample]] = {"new": [], "old": []}
    with ExitStack() as stack:
        for side, canary, where in (("new", new, library), ("old", old, None)):
            if canary is None or not canary.ok:
                continue
            setting = Setting(_threads(), extra_bufts=canary.use_extra_bufts is not False)
            child = trials.Child(
                file,
                n_gpu_layers=-1,
                extra_bufts=setting.extra_bufts,
                env={"PYTHONPATH": _path(where)},
            )
            stack.callback(child.close)
            try:
                child.answer(ANSWER_TIMEOUT_S)
            except trials.TrialError:
                continue
            sides[side] = (child, setting)
        for _ in range(ROUNDS):
            for side, (child, setting) in list(sides.items()):
                try:
                    found = child.ask(trials.job(setting, LOAD), ANSWER_TIMEOUT_S)
                    samples[side].append(trials.sample(found))
                except trials.TrialError:
                    del sides[side]
    return Compared(name, _speeds(samples["new"]), _speeds(samples["old"]))


def _speeds(samples: Sequence[Sample]) -> Speeds | None:
    if len(samples) < ROUNDS:
        return None
    prefill = median(s.prefill_s for s in samples)
    alone = median(s.alone[-1][1] for s in samples)
    whole = autotune.request_s(prefill, alone, alone, 1)
    return Speeds(round(1 / prefill, 1), round(1 / alone, 1), whole)


def _threads() -> int:
    from edgekit_server.engine.threads import default_threads

    return default_threads()[0]


def _path(library: Path | None) -> str:
    from edgekit_server.engine import spawn

    given = spawn.environment()["PYTHONPATH"]
    return given if library is None else f"{library}{os.pathsep}{given}"


@contextmanager
def _first_on_path(library: Path | None) -> Iterator[None]:
    """Let children of ours find `library` first, where no engine is installed."""
    import sys

    if library is None:
        yield
        return
    sys.path.insert(0, str(library))
    try:
        yield
    finally:
        sys.path.remove(str(library))


def refused(verdict: Verdict) -> EngineFailedError:
    """Return the error for a build that is not installed."""
    return EngineFailedError(
        f"not installed: {verdict.reason}",
        code="engine_refused",
        hint="the installed engine is untouched; --force installs the new one all the same",
    )
