"""May this machine run a bundle, and how well? Requirements first, then a fit of each model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgekit.bundle.model import BundledModel
from edgekit.bundle.requirements import Here, ModelNeed, Problem, Requirements, check, pick
from edgekit.bundle.target import arch_of
from edgekit.errors import EdgekitError, MissingInputError, NoDeviceError
from edgekit.facts import Device, ModelCard
from edgekit.fit import FLOOR_CTX_PER_USER, choose, device_from_machine


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a model fits: `n_ctx` and speed with one user, None where it does not or is unknown."""

    model: str
    filetype: str
    fits: bool | None
    n_ctx: int | None
    decode_tok_s: float | None
    reason: str


def judge(
    models: Sequence[BundledModel], runtimes: Sequence[Requirements], here: Here
) -> tuple[Requirements | None, list[Verdict], list[Problem]]:
    """Return the runtime for this machine, a verdict for each model, and what stands in the way."""
    best = pick([replace(one, models=_needs(models, one)) for one in runtimes], here)
    if best is None:
        # Without wheels in it, whatever runs this command runs the models: memory and disk count.
        host = here.machine.host
        system = {"darwin": "macos"}.get(host.os.lower(), host.os.lower())
        own = Requirements("", system, arch_of(host.arch), here.python, "cpu")
        runtime, problems = None, check(replace(own, models=_needs(models, None)), here)
    else:
        runtime, problems = best
    device = device_from_machine(here.machine)
    verdicts = []
    short = any(problem.code == "too_little_memory" for problem in problems)
    for model in models:
        verdict, refused = _fit(model, device)
        verdicts.append(verdict)
        if refused is not None and not short:
            problems = [*problems, refused]
    return runtime, verdicts, problems


def model_need(card: ModelCard, filetype: str, file_bytes: int, device: Device) -> ModelNeed:
    """Say what a model needs on a device with the shortest useful context and one user."""
    from edgekit import memory

    try:
        ctx = min(FLOOR_CTX_PER_USER, card.n_ctx_train)
        table = memory.weights(card, filetype)
        least = memory.predict(card, device, table, n_ctx=ctx, users=1).total
    except EdgekitError:
        return ModelNeed(card.id, filetype, file_bytes, None)
    return ModelNeed(card.id, filetype, file_bytes, least)


def _needs(models: Sequence[BundledModel], listed: Requirements | None) -> tuple[ModelNeed, ...]:
    """The sizes that lie there, with the memory that the maker worked out."""
    known = {(one.model, one.filetype): one.memory_bytes for one in listed.models} if listed else {}
    return tuple(
        ModelNeed(
            model.entry.model,
            model.entry.filetype,
            model.file_bytes,
            known.get((model.entry.model, model.entry.filetype)),
        )
        for model in models
    )


def _fit(model: BundledModel, device: Device) -> tuple[Verdict, Problem | None]:
    from edgekit.catalogue import find_model

    name, filetype = model.entry.model, model.entry.filetype
    try:
        choice = choose(find_model(name), device, filetype=filetype)
    except MissingInputError:
        why = "not in this edgekit's catalogue, so its fit is not known"
        return Verdict(name, filetype, None, None, None, why), None
    except NoDeviceError as error:
        problem = Problem(error.code, error.message, error.hint or "", error.exit_code)
        return Verdict(name, filetype, False, None, None, error.message), problem
    pace = choice.candidate.speed.decode
    speed = pace.value if pace else None
    return Verdict(name, filetype, True, choice.n_ctx, speed, choice.reason), None
