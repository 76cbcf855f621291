"""The fetch step of a deployment: from a plan without weights to the same plan with them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgekit import paths
from edgekit.errors import MissingInputError
from edgekit.licence_policy import check_allowed
from edgekit.located import of_checkpoint
from edgekit.origin import want_of
from edgekit.plan import Plan
from edgekit.units import format_bytes, format_rate

if TYPE_CHECKING:
    from edgekit.deploy import Watcher
    from edgekit.pull import Options, Pulled
    from edgekit.store import Store


def check_obtainable(plan: Plan, *, offline: bool) -> None:
    """Refuse, before anything long begins, a plan whose weights cannot be had.

    Raises:
        DeniedError: the licence must be accepted first, or forbids the use.
        MissingInputError: the weights are not here, and on no hub or the network is forbidden.
        EngineFailedError: the package that lists hubs is not installed.
    """
    from edgekit import hub
    from edgekit.preflight import check_installed

    check_allowed(plan.card, paths.data_dir(), paths.config_dir())
    if plan.entry is not None or plan.weights is not None or plan.ready is not None:
        return
    want = want_of(plan.card)
    if want is None:
        raise MissingInputError(
            f"the weights of {plan.card.id} are not on this machine, nor anywhere edgekit knows",
            code="weights_missing",
            hint="copy the checkpoint here and pass --source DIR",
        )
    if offline or hub.offline_asked():
        raise hub.unavailable([f"{want.repository}@{(want.revision or 'main')[:12]}"])
    check_installed("huggingface_hub")


def fetched(plan: Plan, store: Store, watch: Watcher, options: Options) -> Plan:
    """Return the plan with its weights on this machine.

    Raises as `check_obtainable` and `pull.pull`.
    """
    if plan.entry is not None or plan.weights is not None or plan.ready is not None:
        return plan
    from edgekit.pull import pull

    check_obtainable(plan, offline=options.offline)
    want = want_of(plan.card)
    assert want is not None
    watch.begin("fetch", want.repository)
    told: list[str] = []
    pulled = pull(want, store.root, options, progress=watch.progress, notice=told.append)
    for text in told:
        watch.end("", text)
    watch.end("fetch", said(pulled))
    here = of_checkpoint(pulled.checkpoint, want)
    return replace(plan, weights=here.weights, ready=here.ready, source=here.source)


def said(pulled: Pulled) -> str:
    """Say in a line what a fetch brought."""
    manifest, result = pulled.checkpoint.manifest, pulled.result
    name = f"{manifest.repository}@{manifest.revision[:7]}, {format_bytes(manifest.bytes)}"
    if result is None:
        return f"{name}: in the store already"
    rate = format_rate(result.new_bytes / result.seconds) if result.seconds > 0.05 else ""
    resumed = f", {format_bytes(result.resumed_bytes)} were here" if result.resumed_bytes else ""
    checked = sum(f.check == "sha256" for f in result.files)
    return f"{name}, {checked} sha256 checked{resumed}{f' · {rate}' if rate else ''}"
