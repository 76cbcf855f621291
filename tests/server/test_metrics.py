"""What Prometheus scrapes: the engine child's own totals among it."""

from __future__ import annotations

from edgekit_server.engine.wire import Pulse
from edgekit_server.metrics import Metrics


def test_the_engines_totals_are_there() -> None:
    pulse = Pulse(worked=9, taken=3, n_steps=7, decode_s=1.25, busy_s=1.5)
    lines = Metrics().render(in_flight=0, restarts=0, ready=True, pulse=pulse).splitlines()
    assert "edgekit_engine_steps_total 7" in lines
    assert "edgekit_engine_decode_seconds_total 1.25" in lines
    assert "edgekit_engine_busy_seconds_total 1.5" in lines
    assert "# TYPE edgekit_engine_busy_seconds_total counter" in lines


def test_before_the_first_pulse_they_are_zero() -> None:
    lines = Metrics().render(in_flight=0, restarts=0, ready=False).splitlines()
    assert "edgekit_engine_steps_total 0" in lines
