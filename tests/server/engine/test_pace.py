"""The chunk that a prompt gets while others decode."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_server.engine.pace import QUANTUM, Pace


def test_nothing_known_gives_a_whole_pass() -> None:
    assert Pace(0.1, 512).rows() == 512
    assert Pace(0.1, 512).alone(2048) == 2048


@pytest.mark.parametrize(
    ("a", "b", "target_s", "expected"),
    [
        (0.0, 0.001, 0.1, 96),  # 1 ms a row: 100 rows, down to a quantum
        (0.0, 0.0001, 0.1, 512),  # a GPU: the whole pass is quicker than the target
        (0.45, 0.0019, 0.5, 448),  # half a second whatever the rows: few rows would pay it often
        (0.02, 0.001, 0.1, 224),  # the target would cost more than a twentieth of the speed
        (0.0, 0.06, 1.0, QUANTUM),  # a slow CPU
    ],
)
def test_finds_the_rows_that_take_the_target(
    a: float, b: float, target_s: float, expected: int
) -> None:
    pace = Pace(target_s, 512)
    for _ in range(60):  # one size at a time, as the loop feeds it
        pace.learn(8, a + b * 8, decoding=True)
        rows = pace.rows()
        pace.learn(rows, a + b * rows, decoding=False)
    assert pace.rows() == expected


def test_prompts_alone_take_about_a_second_a_step() -> None:
    pace = Pace(0.1, 512)
    for rows in (2048, 512, 1024):
        pace.learn(rows, 0.001 * rows, decoding=False)
    assert pace.alone(2048) == 992


@given(
    st.lists(
        st.tuples(st.integers(1, 2048), st.floats(1e-6, 10.0, allow_nan=False), st.booleans()),
        max_size=60,
    ),
    st.integers(QUANTUM, 4096),
)
def test_always_in_bounds(steps: list[tuple[int, float, bool]], most: int) -> None:
    pace = Pace(0.1, most)
    for rows, seconds, decoding in steps:
        pace.learn(rows, seconds, decoding=decoding)
    assert QUANTUM <= pace.rows() <= most
    assert QUANTUM <= pace.alone(most) <= most
