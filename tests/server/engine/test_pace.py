"""The chunk that a prompt gets while others decode."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_server.engine.pace import QUANTUM, Pace


def test_nothing_known_gives_a_whole_pass() -> None:
    assert Pace(0.1, 512).rows() == 512


@pytest.mark.parametrize(
    ("a", "b", "target_s", "expected"),
    [
        (0.02, 0.001, 0.1, 64),  # 20 ms + 1 ms a row: 80 rows, down to a quantum
        (0.0, 0.0001, 0.1, 512),  # a GPU: the whole pass is quicker than the target
        (0.2, 0.001, 0.1, QUANTUM),  # the weights alone take longer than the target
        (0.05, 0.01, 0.1, QUANTUM),  # slow CPU
    ],
)
def test_finds_the_rows_that_take_the_target(
    a: float, b: float, target_s: float, expected: int
) -> None:
    pace = Pace(target_s, 512)
    for rows in (512, 128, 256, 64, 512, 96, 480, 256):
        pace.learn(rows, a + b * rows)
    assert pace.rows() == expected


def test_follows_its_own_choice_to_the_target() -> None:
    """One size at a time, as the loop feeds it: it settles where a step takes the target."""
    pace = Pace(0.1, 512)
    rows = pace.rows()
    for _ in range(40):
        pace.learn(rows, 0.03 + 0.0004 * rows)
        rows = pace.rows()
    assert 128 <= rows <= 192


@given(
    st.lists(st.tuples(st.integers(1, 2048), st.floats(1e-6, 10.0, allow_nan=False)), max_size=60),
    st.integers(QUANTUM, 4096),
)
def test_always_in_bounds(steps: list[tuple[int, float]], most: int) -> None:
    pace = Pace(0.1, most)
    for rows, seconds in steps:
        pace.learn(rows, seconds)
    assert QUANTUM <= pace.rows() <= most


def test_prompts_alone_take_about_a_second_a_step() -> None:
    pace = Pace(0.1, 512)
    assert pace.alone(2048) == 2048
    for rows in (2048, 512, 1024):
        pace.learn(rows, 0.0 + 0.001 * rows)
    assert pace.alone(2048) == 992
    assert pace.rows() == 96
