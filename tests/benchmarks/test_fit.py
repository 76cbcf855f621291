"""Measure the planner: how near its speeds are to published rows, and how long a fit takes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections import defaultdict

import pytest

from tests.support import published

pytestmark = pytest.mark.bench

COMMAND = ["fit", "mistral-3-small", "--device", "a10", "--users", "4", "--json"]


def test_predicted_beside_published(capsys: pytest.CaptureFixture[str]) -> None:
    groups: dict[tuple[str, str], list[published.PublishedRow]] = defaultdict(list)
    for row in published.rows():
        groups[row.device, row.test].append(row)
    with capsys.disabled():
        print(f"\n{'device':20} {'test':>4} {'rows':>4} {'median':>7} {'worst':>6} {'in range':>9}")
        for (device, test), rows in sorted(groups.items()):
            found = published.errors(rows)
            errors = [error for error, _ in found]
            held = sum(inside for _, inside in found) / len(found)
            print(
                f"{device:20} {test:>4} {len(rows):>4} {statistics.median(errors):>7.1%} "
                f"{max(errors):>6.0%} {held:>9.0%}"
            )


def test_a_fit_is_quick(capsys: pytest.CaptureFixture[str]) -> None:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "edgekit", *COMMAND], capture_output=True)
        times.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    with capsys.disabled():
        print(
            f"\nedgekit {' '.join(COMMAND)}: {min(times):.3f} to {max(times):.3f} s, whole process"
        )


SURVEY = """
import time
from edgekit import fit
from edgekit.catalogue import load_devices, load_models
cards = list(load_models().values())
devices = [d for d in load_devices().values() if not d.probed]
began = time.process_time()
n = sum(1 for _ in fit.survey(cards, devices, (8192, 16384, 32768), users=4))
print(n, time.process_time() - began)
"""
BUDGET_S = 2.0


def test_a_survey_is_quick(capsys: pytest.CaptureFixture[str]) -> None:
    times, n = [], 0
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", SURVEY], capture_output=True, check=True)
        count, took = done.stdout.split()
        n = int(count)
        times.append(float(took))
    median = statistics.median(times)
    with capsys.disabled():
        print(
            f"\n{n:,} answers of models x devices x 3 contexts: {median:.2f} s of process time, "
            f"{median / BUDGET_S:.0%} of the {BUDGET_S:g} s allowed"
        )
