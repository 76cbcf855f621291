"""The sentences of a fit report: what binds, by how much, and what would help.

Pure text from plain figures, so that the terminal, the JSON and the HTML say the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from edgekit.facts import Device, FileType
from edgekit.memory import MemoryPlan
from edgekit.units import GIB, format_count, format_percent

if TYPE_CHECKING:
    from edgekit.speed import Estimate

_NO_ENGINE = {
    "mcu": "a microcontroller has megabytes of memory where the smallest models take hundreds",
    "phone": "a phone takes no server, and gets slower within minutes as it warms up",
}

_OWNER = {"accelerator": "device", "unified": "machine", "host": "host"}


def gib(n_bytes: float) -> str:
    """1_395_864_371 -> "1.3 GiB"; at least 0.1 for anything above nothing."""
    return f"{max(n_bytes / GIB, 0.1 if n_bytes > 0 else 0.0):,.1f} GiB"


def shared(n_ctx: int, users: int) -> str:
    """ "32,768 tokens shared by 4 users"."""
    who = "for one user" if users == 1 else f"shared by {users} users"
    return f"{format_count(n_ctx)} tokens {who}"


def fits(plan: MemoryPlan) -> str:
    """How full the device gets."""
    main = plan.parts[0]
    text = (
        f"{shared(plan.n_ctx, plan.users)} need {gib(main.total)} of the "
        f"{_OWNER[main.memory]}'s {gib(plan.device.limit_bytes or 0)}; "
        f"{gib(spare(plan))} stay free"
    )
    for part in plan.parts[1:]:
        known = "" if part.budget is not None else ", which is not known for this device"
        text += f"; {gib(part.total)} more in host memory{known}"
    return text


def spare(plan: MemoryPlan) -> int:
    """Bytes of the device's memory that the plan leaves, margin included."""
    return max(0, (plan.device.limit_bytes or 0) - plan.parts[0].total)


def cure(plan: MemoryPlan, largest_ctx: int) -> str:
    """What would make it fit."""
    if 0 < largest_ctx < plan.n_ctx:
        return f"it fits at {format_count(largest_ctx)} tokens"
    return "no context fits"


def no_margin(plan: MemoryPlan, largest_ctx: int) -> str:
    """It goes in, but eats what should stay free."""
    return (
        f"goes in with {gib(spare(plan))} free where {gib(plan.device.margin_bytes)} should stay "
        f"free; {cure(plan, largest_ctx)}"
    )


def partial(plan: MemoryPlan, largest_ctx: int, *, asked: bool, short: int = 0) -> str:
    """Some layers on the host; `short` is what the device lacks for all of them."""
    where = f"{plan.n_gpu_layers} of {plan.n_layers} layers on the device"
    rest = f"the rest in {gib(plan.parts[-1].total)} of host memory, several times slower"
    if asked:
        return f"{where} as asked, {rest}"
    lacks = f"{gib(short)} short: " if short > 0 else ""
    return f"{lacks}gets only {where}, {rest}; {cure(plan, largest_ctx)}"


def too_big(plan: MemoryPlan, largest_ctx: int) -> str:
    """How much is missing."""
    main = plan.parts[0]
    what = {
        "weights": f"the weights alone are {gib(main.weights)}",
        "kv": f"{gib(main.weights)} of weights and {gib(main.kv)} of keys and values",
        "compute": f"{gib(main.compute)} of scratch beside weights, keys and values",
    }
    return (
        f"needs {gib(plan.missing or 0)} more than the {gib(main.budget or 0)} that may be used "
        f"({what[over_at(plan)]}); {cure(plan, largest_ctx)}"
    )


def host_short(plan: MemoryPlan) -> str:
    """The device's part fits, the host's does not."""
    host = plan.parts[-1]
    return (
        f"the device's part fits, but the host needs {gib(host.total)} "
        f"and has {gib(host.budget or 0)} to give; close something or add memory"
    )


def beyond_training(plan: MemoryPlan, n_ctx_train: int) -> str:
    """More context than the model can use."""
    most = n_ctx_train * plan.users
    who = "" if plan.users == 1 else f" for each of {plan.users} users"
    return (
        f"the model was trained on {format_count(n_ctx_train)} tokens{who}; "
        f"ask for at most {format_count(most)}"
    )


def memory_unknown(plan: MemoryPlan, device: Device) -> str:
    """A device without a memory figure is never said to fit."""
    return f"the memory of {device.name} is not known; {gib(plan.parts[0].total)} are needed"


def why_chosen(
    plan: MemoryPlan,
    filetype: FileType,
    *,
    asked_for: bool,
    wanted_ctx: int,
    better: str | None,
) -> str:
    """The reason of a choice; `better` says why the next better file type lost."""
    lead = f"{filetype.id} as asked:" if asked_for else "best expected quality that"
    parts = [f"{lead} fits {shared(plan.n_ctx, plan.users)} and leaves {gib(spare(plan))} free"]
    if plan.n_ctx < wanted_ctx:
        parts.append(
            f"the context is shorter than {format_count(wanted_ctx)}, which nothing down to "
            "this quality leaves room for"
        )
    if better:
        parts.append(better)
    return "; ".join(parts)


def would_need(filetype: FileType, missing_bytes: int, largest_ctx: int) -> str:
    """Why a better file type lost to memory."""
    text = f"{filetype.id} would need {gib(missing_bytes)} more at this context"
    return f"{text}; it fits at {format_count(largest_ctx)} tokens" if largest_ctx else text


def faster_but(
    filetype: FileType, best: FileType, gain: float | None, room: int, n_ctx: int
) -> str:
    """Why a smaller file type that fits was not taken; `gain` is relative decode speed."""
    good = []
    if gain is not None and gain >= 0.005:
        good.append(f"{format_percent(gain)} faster")
    if room > n_ctx:
        good.append(f"room for {format_count(room)} tokens")
    lead = f"{' and '.join(good)}, but " if good else ""
    times = f"{filetype.loss / best.loss:.1f} times as much" if best.loss else "more"
    return f"{lead}expected to lose {times} (KL {filetype.loss:.4f} against {best.loss:.4f})"


def slower_for_nothing(filetype: FileType, best: FileType, tok_s: float, floor: float) -> str:
    """Why the 8-bit type is held back on a slow device."""
    return (
        f"{filetype.id} fits too but gives {tok_s:.1f} tok/s a user, under the {floor:.0f} "
        f"at which losing {best.loss - filetype.loss:.4f} less (KL) is worth the wait"
    )


def fits_too(filetype: FileType, chosen: FileType) -> str:
    """A better file type that lost only because another was asked for."""
    return (
        f"{filetype.id} fits too and is expected to lose less (KL {filetype.loss:.4f} against "
        f"{chosen.loss:.4f}), but {chosen.id} was asked for"
    )


def too_slow(decode: Estimate | None, tok_s: float) -> str:
    """Fewer tokens a second than asked."""
    if decode is None:
        return f"whether a user gets the {tok_s:g} tok/s asked for is not known"
    return f"about {decode.value:.3g} tok/s a user where {tok_s:g} were asked for"


def too_late(first: Estimate | None, ttft_ms: float) -> str:
    """A longer wait for the first token than asked."""
    if first is None:
        return f"whether the first token comes within {ttft_ms:,.0f} ms is not known"
    return f"first token after about {first.value:,.0f} ms where {ttft_ms:,.0f} were asked for"


def over_at(plan: MemoryPlan) -> Literal["weights", "kv", "compute"]:
    """The part at which the device is full, laid in one after another."""
    main = plan.parts[0]
    left = (main.budget or 0) - main.overhead - main.weights
    if left < 0:
        return "weights"
    return "kv" if left - main.kv < 0 or main.total <= (main.budget or 0) else "compute"


def no_engine(device: Device) -> str:
    """Hardware that llama.cpp cannot be loaded on."""
    why = _NO_ENGINE.get(device.kind, "there is no build of it")
    return f"llama.cpp does not run on {device.name} as edgekit installs it: {why}"
