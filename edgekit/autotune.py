"""Which engine settings are fastest here: what to try next, and what the figures say. Pure.

Settings are tried one change at a time, each on top of the best so far, beside the default, which
is llama-server's own; then the default and the best other are measured in turn until both have
`ROUNDS` samples. The measure is the time of a typical request (`OBJECTIVE`). Another setting than
the default is taken only when it is faster by more than `MARGIN` and by more than the noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Final

PROMPT_TOKENS: Final = 512
OUTPUT_TOKENS: Final = 128
OBJECTIVE: Final = (
    f"time of a request of {PROMPT_TOKENS} new prompt tokens and {OUTPUT_TOKENS} answer tokens, "
    "half of them alone, half with all users at once"
)
ROUNDS: Final = 3
MARGIN: Final = 0.02
FIRST_LOOK_MARGIN: Final = 0.10
"""Asked of a setting that there was time to measure once only."""

TINY_BYTES: Final = 64 * 10**6
TINY_BUDGET_S: Final = 4.0
BUDGET_S: Final = 20.0
MOST_BUDGET_S: Final = 120.0
DEEPEST: Final = 1024
"""Tokens of context of the typical request; what is faster at ten times that may lose here."""
FEWEST_STEPS: Final = 6
MOST_STEPS: Final = 32
VISITS: Final = 12
"""A budget should hold so many trials: about nine settings, and the finals."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What the engine can be told. `flash_attn` None is llama.cpp's choice: on where it can."""

    n_threads: int
    n_ubatch: int = 512
    flash_attn: bool | None = None
    streams: bool = False
    extra_bufts: bool = True


@dataclass(frozen=True, slots=True)
class Sample:
    """One trial: seconds per prompt token, and per step at each depth, alone and together.

    `alone` empty: only the prompt was timed. `together` is a step of all users at the last depth.
    """

    prefill_s: float
    alone: tuple[tuple[int, float], ...] = ()
    together: float | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """Medians of the samples of one setting. `noise` is relative, 0 for a single sample."""

    prefill_s: float
    alone: tuple[tuple[int, float], ...]
    together: float
    request_s: float
    samples: int
    noise: float

    @property
    def alone_s(self) -> float:
        return self.alone[-1][1]


@dataclass(frozen=True, slots=True)
class Load:
    """What one trial does: prompt depths in tokens, users at once, steps at each depth."""

    depths: tuple[int, ...]
    users: int
    n_steps: int = FEWEST_STEPS


@dataclass(frozen=True, slots=True)
class Space:
    """The default, and the values that are worth trying beside it. `left_out` says what is not."""

    default: Setting
    flash_off: bool = True
    streams: bool = False
    extra_off: bool = True
    ubatches: tuple[int, ...] = ()
    threads: tuple[int, ...] = ()
    left_out: tuple[str, ...] = ()

    def stages(self, best: Sequence[Setting]) -> Iterator[list[Setting]]:
        """Yield what to try, stage by stage; `best[i]` is the best after stage i."""
        at = self.default
        yield [
            replace(at, flash_attn=flash, streams=streams)
            for streams in ((False, True) if self.streams else (False,))
            for flash in ((None, False) if self.flash_off else (None,))
        ]
        at = best[0]
        yield [replace(at, extra_bufts=False)] if self.extra_off else []
        at = best[1]
        yield [replace(at, n_ubatch=n) for n in self.ubatches]
        at = best[2]
        yield [replace(at, n_threads=n) for n in self.threads]


History = Mapping[Setting, Sequence[Sample]]


def budget_s(file_bytes: int) -> float:
    """Return the seconds that trials of a model may take once it is loaded."""
    if file_bytes < TINY_BYTES:
        return TINY_BUDGET_S
    return min(MOST_BUDGET_S, BUDGET_S + 6.0 * max(0.0, file_bytes / 1e9 - 1))


def size_load(rough_tok_s: float, seconds: float, users: int, n_ctx: int) -> Load:
    """Return the deepest trial of which `VISITS` fit into the time, within the planned context.

    The rate of a short prompt, `rough_tok_s`, is below that of a long one.
    """
    # Room for the drawn tokens, and 256 as contexts are padded.
    users = max(1, min(users, n_ctx // (128 + 256)))
    per_seq = n_ctx // users - 256
    fast = [d for d in (DEEPEST, 512, 256) if d / rough_tok_s <= seconds / VISITS]
    depth = next((d for d in fast if d <= per_seq), 128)
    # Steps of a small model are short, so more of them are timed.
    n_steps = max(FEWEST_STEPS, min(MOST_STEPS, round(rough_tok_s / 200)))
    return Load((min(512, depth // 2), depth), users, n_steps)


def request_s(prefill_s: float, alone_s: float, together_s: float, users: int) -> float:
    """Return the seconds of a typical request, see `OBJECTIVE`."""
    return PROMPT_TOKENS * prefill_s + OUTPUT_TOKENS * (alone_s + together_s / users) / 2


def figures(history: History, setting: Setting, users: int) -> Figures | None:
    """Return the medians of a setting; what it does not change comes from the one it was made of.

    The step times of a setting that was tried on prompts alone are those of the same setting
    with another ubatch. None: nothing, or not enough, was measured.
    """
    samples = history.get(setting, ())
    if not samples:
        return None
    drawn = [s for s in samples if s.alone] or _drawn_alike(history, setting)
    if not drawn:
        return None
    depths = [depth for depth, _ in drawn[0].alone]
    alone = tuple((d, median(s.alone[i][1] for s in drawn)) for i, d in enumerate(depths))
    together = median(_together(s, users) for s in drawn)
    prefill = median(s.prefill_s for s in samples)
    times = [
        request_s(s.prefill_s, s.alone[-1][1], _together(s, users), users)
        for s in samples
        if s.alone
    ]
    whole = request_s(prefill, alone[-1][1], together, users)
    noise = (max(times) - min(times)) / (2 * whole) if len(times) > 1 else 0.0
    return Figures(prefill, alone, together, whole, len(samples), noise)


def prompt_only(history: History, setting: Setting) -> bool:
    """Whether a first look needs no steps: they are known from the same with another ubatch."""
    return setting not in history and bool(_drawn_alike(history, setting))


def _drawn_alike(history: History, setting: Setting) -> list[Sample]:
    """Return the samples with steps of the first setting that differs in the ubatch at most."""
    for other, samples in history.items():
        if replace(other, n_ubatch=setting.n_ubatch) == setting:
            drawn = [s for s in samples if s.alone]
            if drawn:
                return drawn
    return []


def next_setting(
    space: Space,
    history: History,
    refused: frozenset[Setting],
    users: int,
    *,
    hurry: bool = False,
) -> Setting | None:
    """Return what to measure next; None: everything worth it has been measured.

    `hurry`: there is no time for further settings; the one that looks fastest is proven, unless
    there is none yet.
    """
    if not history.get(space.default):
        return None if space.default in refused else space.default
    best: list[Setting] = []
    stages = space.stages(best)
    hurry = hurry and _contender(space, history, users) is not None
    for stage in stages if not hurry else ():
        for setting in stage:
            if setting not in history and setting not in refused:
                return setting
        best.append(_best(space, history, users))
    contender = _contender(space, history, users)
    if contender is None:
        return None
    finalists = sorted((space.default, contender), key=lambda s: len(history[s]))
    return finalists[0] if len(history[finalists[0]]) < ROUNDS else None


@dataclass(frozen=True, slots=True)
class Choice:
    """The setting to run with, its figures and the default's, and why, by name of the setting."""

    setting: Setting
    chosen: Figures
    default: Figures
    reasons: Mapping[str, str]

    @property
    def gain(self) -> float:
        """How many times as fast as the default: 1.0 is the default itself."""
        return self.default.request_s / self.chosen.request_s


def choose(space: Space, history: History, users: int) -> Choice | None:
    """Return the setting to run with; None when not even the default was measured."""
    default = figures(history, space.default, users)
    if default is None:
        return None
    setting, chosen = space.default, default
    contender = _contender(space, history, users)
    found = figures(history, contender, users) if contender else None
    if contender is not None and found is not None:
        once = min(found.samples, default.samples) < 2
        needed = max(FIRST_LOOK_MARGIN if once else MARGIN, default.noise, found.noise)
        if found.request_s <= default.request_s * (1 - needed):
            setting, chosen = contender, found
    from edgekit.autotune_words import reasons

    return Choice(setting, chosen, default, reasons(history, setting, users))


def _best(space: Space, history: History, users: int) -> Setting:
    """Return the fastest so far; the default where nothing is faster by more than the margin."""
    contender = _contender(space, history, users)
    default, other = (
        figures(history, space.default, users),
        figures(history, contender, users) if contender else None,
    )
    if contender is None or default is None or other is None:
        return space.default
    return contender if other.request_s < default.request_s * (1 - MARGIN) else space.default


def _contender(space: Space, history: History, users: int) -> Setting | None:
    """Return the fastest setting beside the default."""
    found = {s: figures(history, s, users) for s in history if s != space.default}
    known = {s: f.request_s for s, f in found.items() if f is not None}
    return min(known, key=lambda s: known[s]) if known else None


def _together(sample: Sample, users: int) -> float:
    """Seconds of a step of all users; without a figure of its own, a user after the other."""
    if sample.together is not None:
        return sample.together
    return sample.alone[-1][1] * users
