"""The shapes behind published measurements: names resolve, sizes are those published."""

from __future__ import annotations

import contextlib
import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import benchmark_shapes, catalogue, memory
from edgekit.errors import MissingInputError
from edgekit.fit import choose
from edgekit.tensor_list import listed_params

DATA = Path(__file__).parents[1] / "data" / "measured_models.csv"
SHAPES = benchmark_shapes.load()
with DATA.open(newline="") as file:
    MEASURED = list(csv.DictReader(file))


def test_measured_names_resolve_as_recorded() -> None:
    found = {}
    for row in MEASURED:
        try:
            shape = catalogue.find_benchmark_shape(row["name"])
            found[row["name"]] = (shape.id, shape.how)
        except MissingInputError:
            found[row["name"]] = ("", "")
    assert found == {row["name"]: (row["id"], row["how"]) for row in MEASURED}
    resolved = sum(int(row["rows"]) for row in MEASURED if row["id"])
    assert resolved >= 0.96 * sum(int(row["rows"]) for row in MEASURED)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_a_shape_holds_the_published_parameters(shape: benchmark_shapes.BenchmarkShape) -> None:
    listed = listed_params(shape.config, shape.arch)
    if shape.params is not None:
        assert listed == pytest.approx(shape.params, rel=2e-3)
    card = shape.card()
    assert card.sources == ()
    table = memory.weights(card, "Q4_K_M")
    assert 0 < table.read_per_token <= table.total
    assert memory.file_bytes(card, table) > table.total


# GiB of published files, as the tables of llama-bench give them, and their file types.
@pytest.mark.parametrize(
    ("name", "filetype", "gib"),
    [
        ("llama-2-7b", "Q4_0", 3.56),
        ("llama-3-70b", "Q4_K_M", 39.59),
        ("qwen3-32b", "Q8_0", 32.42),
        ("gemma-3-12b", "Q4_K_M", 6.79),
        ("mistral-nemo-12b", "Q5_K_M", 8.12),
        ("gpt-oss-20b", "F16", 12.83),
        ("glm-4.7-flash", "BF16", 55.79),
        ("qwen2.5-32b", "Q6_K", 25.03),
        ("glm-4-32b", "Q4_K_M", 18.32),
    ],
)
def test_files_have_the_published_size(name: str, filetype: str, gib: float) -> None:
    shape = catalogue.find_benchmark_shape(name)
    assert memory.weights(shape.card(), filetype).total / 2**30 == pytest.approx(gib, rel=0.004)


def test_no_name_is_listed_twice_and_none_is_offered() -> None:
    _, names = benchmark_shapes._listed()
    every = [n for own in names.values() for n in own] + list(SHAPES)
    assert len(every) == len(set(every))
    assert not set(SHAPES) & set(catalogue.load_models())


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("hf.co/bartowski/Qwen_Qwen3-8B-GGUF:Q4_K_M", "qwen3-8b"),
        ("Meta-Llama-3.1-8B-Instruct.Q8_0", "llama-3-8b"),
        ("gemma3:27b-it-qat", "gemma-3-27b"),
        ("mistral-small-24b-instruct-2501", "mistral-small-24b-2501"),
        ("openai/gpt-oss-20b", "gpt-oss-20b"),
    ],
)
def test_spellings_of_a_name(name: str, id: str) -> None:
    assert catalogue.find_benchmark_shape(name).id == id


@pytest.mark.parametrize("name", ["", "7b", "q4_k_m", "qwen", "lfm2-24b-a2b", "my-model-8b"])
def test_a_size_is_no_name(name: str) -> None:
    with pytest.raises(MissingInputError, match="no shape") as caught:
        catalogue.find_benchmark_shape(name)
    assert caught.value.code == "shape_unknown"


@given(st.text(max_size=200))
def test_any_text_is_answered(name: str) -> None:
    with contextlib.suppress(MissingInputError):
        assert benchmark_shapes.find(name).shape.n_layer > 0


def test_a_shape_can_be_fitted() -> None:
    card = SHAPES["llama-2-13b"].card()
    choice = choose(card, catalogue.find_device("a10"), users=1, n_ctx=4096)
    assert choice.plan.fits
    assert card.licence.commercial_use is None
