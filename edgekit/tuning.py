"""Tune the engine for a deployment: what may be tried, the trials, and the plan that follows."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from edgekit import autotune, memory, paths, trials, tuned
from edgekit.autotune import Setting, Space
from edgekit.machine import Machine
from edgekit.memory import MemoryPlan
from edgekit.plan import Plan
from edgekit.ready_gguf import model_bytes
from edgekit.tuned import Row, Tuned
from edgekit.units import format_bytes

VERSION: Final = 2
"""Of the trials: figures of another version are measured again."""

MOST_NOISE: Final = 0.15
"""Relative; figures that scatter more are used once and not kept."""

CPU_UBATCHES: Final = (256, 1024)
GPU_UBATCHES: Final = (1024, 2048)


def folder() -> Path:
    """Where records of tuning are kept."""
    return paths.cache_dir() / "autotune"


def facts(plan: Plan, machine: Machine, sha256: str, *, extra_bufts: bool) -> dict[str, object]:
    """Return everything that the figures depend on: machine, library, model, load."""
    cpu = machine.host.cpu
    return {
        "version": VERSION,
        "cpu": cpu.model,
        "cores": [cpu.physical_cores, cpu.logical_cores, cpu.usable_cores],
        "cpu_flags": hashlib.sha256(" ".join(sorted(cpu.flags)).encode()).hexdigest()[:16],
        "accelerators": [[a.name, a.driver, a.memory_total_bytes] for a in machine.accelerators],
        "engine": machine.engine.llama_cpp_python,
        "library": library_digest(),
        "extra_bufts": extra_bufts,
        "model": sha256,
        "n_ctx": plan.choice.n_ctx,
        "users": plan.choice.users,
        "n_gpu_layers": plan.choice.n_gpu_layers,
    }


def library_digest() -> str | None:
    """Name the installed build by its libraries' names, sizes and times; None: there is none."""
    spec = importlib.util.find_spec("llama_cpp")
    roots = list(spec.submodule_search_locations or ()) if spec else []
    lines = []
    for file in sorted(f for root in roots for f in (Path(root) / "lib").glob("*")):
        stat = file.stat()
        lines.append(f"{file.name} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] if lines else None


def find(plan: Plan, machine: Machine | None, sha256: str, *, extra_bufts: bool) -> Tuned | None:
    """Return what an earlier deployment found here, if nothing has changed since."""
    if machine is None:
        return None
    return tuned.find(folder(), facts(plan, machine, sha256, extra_bufts=extra_bufts))


def tune(
    plan: Plan,
    machine: Machine | None,
    file: Path,
    *,
    extra_bufts: bool,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Tuned | None:
    """Return the settings to run with, from the cache or by trials; None: nothing was measured.

    `file` is the store's, named by its digest. `extra_bufts` is what the canary survived with.
    """
    if machine is None:
        return None
    known = find(plan, machine, file.stem, extra_bufts=extra_bufts)
    if known is not None:
        return known
    space = space_for(plan, machine, extra_bufts=extra_bufts)
    found = trials.run(
        file,
        space,
        n_gpu_layers=plan.choice.n_gpu_layers,
        users=plan.choice.users,
        n_ctx=plan.choice.n_ctx,
        several=room_for_two(plan.choice.plan),
        progress=lambda done, total: progress(round(done * 1000), round(total * 1000)),
    )
    if found.load is None or not found.history:
        return None
    users = found.load.users
    choice = autotune.choose(space, found.history, users)
    if choice is None:
        return None
    order = sorted(found.history, key=lambda s: s != space.default)
    rows = [(s, autotune.figures(found.history, s, users)) for s in order]
    refused = [f"{_words(s, space.default)}: {why}" for s, why in found.refused.items()]
    result = Tuned(
        setting=choice.setting,
        users=users,
        rows=tuple(Row(s, f) for s, f in rows if f is not None),
        reasons=choice.reasons,
        left_out=(*space.left_out, *refused),
        seconds=found.seconds,
        facts=facts(plan, machine, file.stem, extra_bufts=extra_bufts),
        note=found.note,
    )
    doubt = doubts(choice, model_bytes(file))
    if doubt is not None:
        # What holds now need not hold tomorrow.
        note = f"not kept, tried again next time: {doubt}"
        return replace(result, note="; ".join(filter(None, (found.note, note))))
    tuned.keep(folder(), result)
    return result


def doubts(choice: autotune.Choice, file_bytes: int) -> str | None:
    """Say why a choice is not to be kept; None: it is. A large model is not tried twice."""
    if max(choice.default.noise, choice.chosen.noise) > MOST_NOISE:
        return "the figures scattered, the machine was busy"
    seldom = min(choice.default.samples, choice.chosen.samples) < 2
    if seldom and autotune.budget_s(file_bytes) <= autotune.BUDGET_S:
        return "there was time for one look only, the machine was busy"
    return None


def space_for(
    plan: Plan, machine: Machine, *, extra_bufts: bool, threads: int | None = None
) -> Space:
    """Return what is worth trying for a plan; whatever does not fit its memory is left out.

    `threads` is the engine's own default; None asks the engine.
    """
    if threads is None:
        from edgekit_server.engine.threads import default_threads

        threads = default_threads()[0]
    choice, cpu = plan.choice, machine.host.cpu
    default = Setting(threads, extra_bufts=extra_bufts)
    left_out: list[str] = []
    share = choice.n_ctx // choice.users
    streams = choice.users > 1 and share >= plan.card.n_ctx_train
    if choice.users > 1 and not streams:
        left_out.append(
            f"KV cells by user: one request could use {share:,} tokens of context only, "
            f"not {min(choice.n_ctx, plan.card.n_ctx_train):,}"
        )
    flash_off = _fits(plan, replace(default, flash_attn=False), left_out)
    on_gpu = bool(machine.accelerators) and choice.n_gpu_layers >= choice.plan.n_layers
    ubatches = GPU_UBATCHES if on_gpu else CPU_UBATCHES
    logical = cpu.usable_cores or cpu.logical_cores or threads
    return Space(
        default=default,
        flash_off=flash_off,
        streams=streams,
        # On an accelerator that holds every layer the CPU multiplies nothing.
        extra_off=extra_bufts and not on_gpu,
        ubatches=tuple(n for n in ubatches if _fits(plan, replace(default, n_ubatch=n), left_out)),
        threads=() if on_gpu else _threads(threads, logical),
        left_out=tuple(left_out),
    )


def applied(plan: Plan, found: Tuned | None) -> Plan:
    """Return the plan with tuned settings and the memory that they take."""
    if found is None:
        return plan
    bytes_ = memory_of(plan, found.setting)
    candidate = replace(plan.choice.candidate, plan=bytes_)
    choice = replace(plan.choice, plan=bytes_, candidate=candidate)
    return replace(plan, choice=choice, tuned=found)


def memory_of(plan: Plan, setting: Setting) -> MemoryPlan:
    """Return the bytes of a plan under a setting."""
    choice = plan.choice
    return memory.predict(
        plan.card,
        plan.device,
        memory.weights(plan.card, choice.filetype),
        n_ctx=choice.n_ctx,
        users=choice.users,
        n_gpu_layers=choice.n_gpu_layers,
        kv_type=choice.plan.kv_type,
        n_ubatch=setting.n_ubatch,
        flash_attn=setting.flash_attn is not False,
        streams=setting.streams,
    )


def room_for_two(bytes_: MemoryPlan) -> bool:
    """Whether the weights fit twice, so that both layouts can be measured in turn."""
    budget = bytes_.budget
    return budget is not None and bytes_.total + bytes_.weights + bytes_.packing <= budget


def engine_options(found: Tuned | None) -> Mapping[str, object]:
    """Return the fields of EngineConfig that tuning decides; nothing without it."""
    if found is None:
        return {}
    setting = found.setting
    return {
        "n_threads": setting.n_threads,
        "n_ubatch": setting.n_ubatch,
        "flash_attn": setting.flash_attn,
        "use_extra_bufts": setting.extra_bufts,
        "kv_mode": "streams" if setting.streams else "unified",
    }


def _fits(plan: Plan, setting: Setting, left_out: list[str]) -> bool:
    bytes_ = memory_of(plan, setting)
    if bytes_.fits:
        return True
    lacks = f" ({format_bytes(bytes_.missing)} more)" if bytes_.missing else ""
    words = _words(setting, Setting(setting.n_threads, extra_bufts=setting.extra_bufts))
    left_out.append(f"{words}: does not fit the memory of the plan{lacks}")
    return False


def _threads(default: int, logical: int) -> tuple[int, ...]:
    wanted: Sequence[int] = (logical, default // 2)
    return tuple(dict.fromkeys(n for n in wanted if n >= 1 and n != default))


def _words(setting: Setting, default: Setting) -> str:
    from edgekit.autotune_words import name

    names = ("flash_attn", "streams", "extra_bufts", "n_ubatch", "n_threads")
    changed = [k for k in names if getattr(setting, k) != getattr(default, k)]
    return ", ".join(name(k, getattr(setting, k)) for k in changed) or "the default"
