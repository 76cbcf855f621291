"""Real tiny models for the engine's tests, made once per session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.gguf_models import write_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """F32 weights."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny_quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Q4_0 weights: the ones that go through repacked and matrix-unit kernels."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny-q4_0.gguf", quantized=True)
