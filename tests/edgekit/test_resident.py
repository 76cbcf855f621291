"""Real deployments: resident memory as predicted, and cgroups as large as the plan never kill."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from edgekit import memory
from edgekit.catalogue import find_device, load_families
from edgekit.deploy import FRONT_BYTES
from edgekit.memory import MemoryPlan
from edgekit.probe import probe
from edgekit.this_machine import device_from_machine
from tests.support import resident
from tests.support.shapes import card
from tests.support.skeletons import write_skeleton

PROMPT = "ab cd ef gh "
"""Each is some twelve tokens of the small vocabulary."""


@dataclass(frozen=True)
class Trial:
    """One deployment. `extra`: weights in the CPU's own layout."""

    model: str
    filetype: str
    n_ctx: int
    users: int
    extra: bool

    def plan(self) -> MemoryPlan:
        family = device_from_machine(probe()).family
        if not self.extra:
            family = load_families()["cpu-avx2"]
        device = replace(
            find_device("this"),
            backend="cpu",
            kind="cpu",
            memory_kind="shared",
            free_bytes=2**40,
            family=family,
        )
        model = card(self.model)
        table = memory.weights(model, self.filetype)
        plan = memory.predict(model, device, table, n_ctx=self.n_ctx, users=self.users)
        return plan if self.extra else replace(plan, mapped=0)

    def options(self) -> list[str]:
        found = ["--id", "m", "--ctx", str(self.n_ctx), "--sequences", str(self.users)]
        return [*found, "--threads", "2", *([] if self.extra else ["--no-extra-bufts"])]

    def use(self, address: str) -> None:
        """All users at once, each with more than a micro-batch where there is room."""
        most = min(self.n_ctx // self.users - 32, 700 if self.users < 3 else 200)
        with ThreadPoolExecutor(self.users) as pool:
            asked = [
                pool.submit(resident.complete, address, "m", f"{i} " + PROMPT * (most // 12), 4)
                for i in range(self.users)
            ]
            for each in asked:
                assert each.result()["choices"]


def check_resident(trial: Trial, folder: Path, within: float = 0.05) -> None:
    pytest.importorskip("llama_cpp")
    path = write_skeleton(card(trial.model), trial.filetype, folder / "model.gguf")
    with resident.serving(path, trial.options()) as (address, processes):
        trial.use(address)
        measured = sum(resident.peak_bytes(processes))
    predicted = trial.plan().resident + FRONT_BYTES
    assert predicted == pytest.approx(measured, rel=within)


def test_a_small_deployment_is_as_large_as_predicted(tmp_path: Path) -> None:
    # Python and the libraries are most of it, and they differ between machines.
    check_resident(Trial("pocket", "Q8_0", 4096, 2, False), tmp_path, 0.15)


@pytest.mark.slow
@pytest.mark.parametrize(
    "trial",
    [
        Trial("pocket", "Q8_0", 4096, 2, True),
        Trial("plain-0.1b", "Q8_0", 4096, 4, True),
        Trial("plain-0.1b", "F16", 8192, 1, False),
        Trial("qwen2.5-coder-1.5b", "Q8_0", 8192, 2, False),
        Trial("qwen2.5-coder-1.5b", "Q4_K_M", 8192, 1, True),
        Trial("ministral-3-3b-2512", "Q4_K_M", 8192, 1, False),
    ],
)
def test_resident_memory_is_within_five_per_cent(trial: Trial, tmp_path: Path) -> None:
    check_resident(trial, tmp_path)


def random_trial(seed: int) -> Trial:
    rng = random.Random(seed)
    return Trial(
        rng.choice(["pocket", "pocket", "plain-0.1b"]),
        rng.choice(["Q8_0", "Q4_K_M", "F16", "Q6_K"]),
        rng.choice([1024, 2000, 4096, 16384]),
        rng.choice([1, 2, 3, 8]),
        rng.random() < 0.5,
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_a_group_as_large_as_the_plan_and_its_margin_never_kills(seed: int, tmp_path: Path) -> None:
    """Random deployments, each in a cgroup that a plan would call full."""
    pytest.importorskip("llama_cpp")
    if resident.own_group() is None:
        pytest.skip("no memory cgroup can be made here")
    check_group(random_trial(seed), tmp_path)


def check_group(trial: Trial, folder: Path) -> tuple[int, int, int]:
    path = write_skeleton(card(trial.model), trial.filetype, folder / "model.gguf")
    needed = trial.plan().total + FRONT_BYTES
    # The margin is an eighth of such a small memory: this much leaves the plan just that.
    limit = -(-needed * 8 // 7)
    with resident.group(limit) as group:
        with resident.serving(path, trial.options(), group) as (address, _):
            trial.use(address)
        found = needed, limit, group.peak_bytes
        assert group.kills == 0, trial
        assert group.peak_bytes <= limit, trial
    return found


@pytest.mark.slow
def test_a_group_that_is_too_small_does_kill(tmp_path: Path) -> None:
    """So the trials above can fail."""
    pytest.importorskip("llama_cpp")
    if resident.own_group() is None:
        pytest.skip("no memory cgroup can be made here")
    trial = Trial("plain-0.1b", "Q8_0", 16384, 1, False)
    path = write_skeleton(card(trial.model), trial.filetype, tmp_path / "model.gguf")
    with resident.group(trial.plan().total // 2) as group:
        with (
            pytest.raises((AssertionError, OSError)),
            resident.serving(path, trial.options(), group) as (address, _),
        ):
            trial.use(address)
        assert group.kills > 0
