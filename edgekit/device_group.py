"""Several accelerators as one device to plan for: `a10*2`, `a10+l4`, `g5.12xlarge`.

llama.cpp gives each card whole layers, in proportion to its memory, and runs them one after
another: memory adds up, speed does not. Each further card keeps a margin and a scratch buffer of
its own, and the last layer that it cannot hold is lost: half a GiB is left out of its memory for
both, and `memory.demand` counts what they take beyond that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from edgekit.budget import RESERVE_BYTES, device_budget, device_overhead, margin
from edgekit.errors import UsageError
from edgekit.facts import Device

MOST: Final = 16
"""llama.cpp's own limit on devices (GGML_CUDA_MAX_DEVICES)."""

_TIMES: Final = re.compile(r"(.+?)[*x](\d+)", re.DOTALL)


def resolve(
    name: str,
    find: Callable[[str], Device],
    instances: Mapping[str, str],
    known: Callable[[str], bool],
) -> Device:
    """The device or devices that a name means.

    `find` resolves one device; `known` says whether a text is one as it stands.

    Raises:
        MissingInputError, UsageError: see `find` and `group`.
    """
    text = name.strip().lower()
    if known(text):
        return find(text)
    if text in instances:
        return replace(resolve(instances[text], find, {}, known), id=text)
    members: list[Device] = []
    for part in text.split("+"):
        times = _TIMES.fullmatch(part.strip())
        if times is None or known(part.strip()):
            members.append(find(part.strip()))
        else:
            count = int(times[2])
            _check(name, count)
            members += [find(times[1].strip())] * count
    _check(name, len(members))
    return members[0] if len(members) == 1 else group(members)


def group(members: Sequence[Device]) -> Device:
    """Cards side by side in one machine, layers split over them.

    Raises:
        UsageError: a member has no memory of its own, or another backend than the first.
    """
    first = members[0]
    for device in members:
        if device.memory_kind != "dedicated" or device.backend != first.backend:
            raise UsageError(
                f"{device.name} cannot share a model's layers with {first.name}",
                code="bad_device_group",
                hint="group cards with their own memory and one backend, such as a10*2",
            )
    alike = all(device.id == first.id for device in members)
    limits = [device_budget(device).limit_bytes for device in members]
    shares = [limit or 1 for limit in limits]
    slowest = min(members, key=lambda d: d.bandwidth_gb_s or 0)
    return replace(
        slowest,
        id=_id(members),
        name=f"{len(members)} x {first.name}" if alike else " + ".join(d.name for d in members),
        aliases=(),
        reported_names=(),
        memory_bytes=_sum([d.memory_bytes for d in members]),
        usable_bytes=_usable(limits),
        overhead_bytes=sum(device_overhead(d)[0] for d in members),
        bandwidth_gb_s=_in_turn([d.bandwidth_gb_s for d in members], shares),
        peak_tflops=_in_turn([d.peak_tflops for d in members], shares),
        fp32_tflops=_in_turn([d.fp32_tflops for d in members], shares),
        watts=_total([d.watts for d in members]),
        price_usd=_total([d.price_usd for d in members]),
        published=first.published if alike else None,
        count=len(members),
        notes=(*first.notes, "layers are split: memory adds up, speed does not")
        if alike
        else ("layers are split: memory adds up, speed does not",),
    )


def _check(name: str, count: int) -> None:
    if not 1 <= count <= MOST:
        raise UsageError(
            f"{name!r} is {count} devices; 1 to {MOST} can share a model",
            code="bad_device_group",
            hint="write a count such as a10*2",
        )


def _usable(limits: Sequence[int | None]) -> int | None:
    total = _sum(limits)
    if total is None:
        return None
    kept = [margin(limit) + RESERVE_BYTES for limit in limits if limit is not None]
    # The budget keeps one margin already: the largest.
    return max(0, total - sum(sorted(kept)[:-1]))


def _id(members: Sequence[Device]) -> str:
    counts: dict[str, int] = {}
    for device in members:
        counts[device.id] = counts.get(device.id, 0) + 1
    return "+".join(own if n == 1 else f"{own}*{n}" for own, n in counts.items())


def _sum(values: Sequence[int | None]) -> int | None:
    known = [v for v in values if v is not None]
    return sum(known) if len(known) == len(values) else None


def _total(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) if len(known) == len(values) else None


def _in_turn(values: Sequence[float | None], shares: Sequence[int]) -> float | None:
    """The rate of doing a share of the work at each rate, one after another."""
    if any(not v for v in values):
        return None
    return sum(shares) / sum(s / v for s, v in zip(shares, values, strict=True) if v)
