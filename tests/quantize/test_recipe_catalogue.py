"""Every catalogued model that edgekit converts x every file type, against llama.cpp's dry run.

Types tensor by tensor, the order of the file and its size; with an importance matrix and without.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from edgekit.catalogue import load_models
from edgekit_quantize import architectures
from edgekit_quantize.errors import BadCheckpointError, BadRecipeError
from edgekit_quantize.metadata import string
from edgekit_quantize.recipe import assign, weights_bytes
from edgekit_quantize.tensor_types import FILE_TYPES, TENSOR_TYPES, align, tensor_bytes
from tests.support.quantize_oracle import Run, runs
from tests.support.recipe_models import write_skeleton

QUICK = ("mistral-small-24b-2501", "llama-4-scout", "gpt-oss-20b", "deepseek-coder-v2-lite")


def convertible() -> dict[str, Mapping[str, object]]:
    found = {}
    for name, card in load_models().items():
        try:
            architectures.for_config(card.config).tensors(card.config)
        except BadCheckpointError:
            continue
        found[name] = card.config
    return found


def assert_all(config: Mapping[str, object], folder: Path) -> int:
    """Compare all 70 cases; return how many there were."""
    architecture = architectures.for_config(config)
    specs, params = architecture.tensors(config), architecture.recipe_params(config)
    native = {spec.name for spec in specs if spec.native is not None}
    keys = [string("general.architecture", architecture.name), *architecture.metadata(config)]
    source = write_skeleton(folder / "bf16.gguf", keys, specs)
    assert os.stat(source).st_blocks * 512 < 64 << 20, "the weights are a hole"
    np.savez(folder / "one.npz", none=np.ones(1, np.float32))
    cases = [(name, imatrix) for name in FILE_TYPES for imatrix in (False, True)]
    wanted = [
        Run(str(source), FILE_TYPES[n].number, imatrix=str(folder / "one.npz") if w else None)
        for n, w in cases
    ]
    for (name, imatrix), done in zip(cases, runs(wanted), strict=True):
        if done.error is not None:
            assert "no tensor type fallback" in done.error
            with pytest.raises(BadRecipeError):
                assign(specs, name, params, imatrix=imatrix)
            continue
        types = assign(specs, name, params, imatrix=imatrix)
        ours = {spec.name: kind.name for spec, kind in zip(specs, types, strict=True)}
        # llama-quantize's dry run gives such tensors another type; a real run refuses to
        # requantize them. They stay as they are here.
        assert all(ours[tensor] == "MXFP4" for tensor in native)
        theirs = done.types | dict.fromkeys(native, "MXFP4")
        assert ours == theirs, (name, imatrix)
        assert list(ours) == list(theirs), "order of the file"
        total = sum(tensor_bytes(k, s.shape) for s, k in zip(specs, types, strict=True))
        moved = sum(
            tensor_bytes(TENSOR_TYPES[done.types[s.name]], s.shape)
            - tensor_bytes(TENSOR_TYPES["MXFP4"], s.shape)
            for s in specs
            if s.name in native
        )
        assert done.mib is not None
        assert abs((total + moved) / 2**20 - done.mib) < 0.006, (name, imatrix)
        planned = weights_bytes(config, name, imatrix=imatrix)
        padded = sum(align(tensor_bytes(k, s.shape)) for s, k in zip(specs, types, strict=True))
        assert planned == padded
    return len(cases)


@pytest.mark.parametrize("name", QUICK)
def test_types_and_bytes_are_llama_quantizes(name: str, tmp_path: Path) -> None:
    assert assert_all(convertible()[name], tmp_path) == 2 * len(FILE_TYPES)


@pytest.mark.slow
def test_types_and_bytes_of_every_catalogued_model(tmp_path: Path) -> None:
    models = convertible()
    assert set(QUICK) <= set(models)
    total = sum(assert_all(config, tmp_path) for config in models.values())
    assert total == 70 * len(models)
