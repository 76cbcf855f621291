"""Real tiny models for the engine's tests, made once per session."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit_quantize.convert import convert
from tests.support.gguf_models import write_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """F32 weights."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny_quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Q4_0 weights: the ones that go through repacked and matrix-unit kernels."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny-q4_0.gguf", quantized=True)


POCKET = Path(__file__).parents[3] / "profiles/edgekit_profiles/pocket"


@pytest.fixture(scope="session")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained embedded model in F32: its rows do not depend on what is in the batch."""
    path = tmp_path_factory.mktemp("models") / "pocket-f32.gguf"
    return convert(POCKET, path, "F32", threads=1).path


@pytest.fixture(scope="session")
def pocket_quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in Q4_K_M. llama.cpp rounds by batch size here, so a near tie may turn."""
    path = tmp_path_factory.mktemp("models") / "pocket-q4_k_m.gguf"
    return convert(POCKET, path, "Q4_K_M", threads=1).path
