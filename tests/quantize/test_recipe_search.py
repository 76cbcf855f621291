"""The search for the best mix within a size: the climb, the measure, and what it gains."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_quantize import convert, read_header
from edgekit_quantize.architectures import RecipeParams, TensorSpec
from edgekit_quantize.errors import BadRecipeError
from edgekit_quantize.imatrix_file import read_imatrix
from edgekit_quantize.recipe import Overrides
from edgekit_quantize.recipe_file import Recipe, read_recipe, recipe_text
from edgekit_quantize.recipe_fit import Target, fit_size
from edgekit_quantize.recipe_measure import GAINS, expected_losses, measure
from edgekit_quantize.recipe_rules import role
from edgekit_quantize.recipe_search import Option, climb, patterns, search
from tests.support import proof
from tests.support.checkpoints import make_checkpoint
from tests.support.mixtures import qwen3moe

PROFILES = Path(__file__).parents[2] / "profiles" / "edgekit_profiles"
POCKET = PROFILES / "pocket"


def options(*pairs: tuple[int, float]) -> list[Option]:
    return [Option(f"T{size}", size, loss) for size, loss in pairs]


steps = st.lists(st.tuples(st.integers(1, 30), st.floats(0.01, 5)), min_size=1, max_size=4)


@given(st.lists(steps, min_size=1, max_size=4), st.integers(0, 200))
def test_a_climb_is_near_the_best_of_all_mixes(
    raw: list[list[tuple[int, float]]], budget: int
) -> None:
    choices = {}
    for number, items in enumerate(raw):
        sizes = list(itertools.accumulate(size for size, _ in items))
        losses = list(itertools.accumulate(loss for _, loss in items))[::-1]
        choices[f"t{number}"] = options(*zip(sizes, losses, strict=True))
    found = climb(choices, budget)
    mixes = [
        mix for mix in itertools.product(*choices.values()) if sum(o.bytes for o in mix) <= budget
    ]
    if not mixes:
        assert found is None
        return
    assert found is not None
    assert sum(o.bytes for o in found.values()) <= budget
    best = min(sum(o.loss for o in mix) for mix in mixes)
    # One upgrade that does not fit is all that a climb along hulls can miss.
    largest = max(a.loss - c[-1].loss for c in choices.values() for a in c)
    assert sum(o.loss for o in found.values()) <= best + largest + 1e-9


def test_a_climb_takes_what_gains_most_per_byte() -> None:
    choices = {"a": options((10, 1.0), (20, 0.1)), "b": options((10, 9.0), (40, 8.0))}
    found = climb(choices, 35)
    assert found is not None
    assert {name: option.bytes for name, option in found.items()} == {"a": 20, "b": 10}
    assert climb(choices, 19) is None


def test_patterns_name_each_tensor_once() -> None:
    types = {f"blk.{i}.ffn_up.weight": "Q4_K" if i < 11 else "Q6_K" for i in range(12)}
    types |= {"output.weight": "Q8_0", "blk.1.attn_k.weight": "Q3_K"}
    found = patterns(types)
    assert len(found) == 4
    for name, kind in types.items():
        assert [k for p, k in found if re.search(p, name)] == [kind]


def test_a_recipe_file_reads_back(tmp_path: Path) -> None:
    recipe = Recipe(
        "Q4_K_M",
        Overrides((("^blk\\.0\\.a\"'$", "Q6_K"), ("ä", "F16")), output="Q8_0", pure=True),
        ("because", 'of "this"'),
    )
    (tmp_path / "r.toml").write_text(recipe_text(recipe), encoding="utf-8")
    assert read_recipe(tmp_path / "r.toml") == recipe


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("filetype = 3", "must be texts"),
        ("", "must be texts"),
        ("filetype = 'Q4_K_M'\ntensors = 3", "must be texts"),
        ("filetype = 'Q4_K_M'\nmore = 3", "unknown key more"),
        ("filetype = 'Q4_K_M'\npure = 'yes'", "pure must be"),
        ("filetype = ", "is no recipe"),
        ("filetype = 'Q4_K_M'\n[tensors]\na = {b = 1}", "must be texts"),
    ],
)
def test_recipe_files_that_make_no_sense(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(BadRecipeError, match=words) as caught:
        read_recipe(tmp_path / "r.toml")
    assert caught.value.code == "bad_recipe"


def test_a_stock_type_that_is_as_good_is_kept() -> None:
    specs = [TensorSpec(f"blk.{i}.ffn_up.weight", (256, 256)) for i in range(2)]
    losses = {spec.name: {"Q4_K": 0.5, "Q6_K": 0.4, "Q8_0": 0.4} for spec in specs}
    params = RecipeParams("llama", 2, 4, 4)
    mix = search(specs, params, losses, 2 * 256 * 210 + 40)
    assert (mix.filetype, bool(mix.overrides)) == ("Q6_K", False)
    assert "loses no more" in mix.reasons[0]
    with pytest.raises(BadRecipeError, match="smallest mix has 73728 bytes") as caught:
        search(specs, params, losses, 70_000)
    assert caught.value.code == "target_too_small"


def test_errors_fall_with_bits_and_losses_follow_the_role(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    errors = measure(POCKET, threads=2, progress=lambda a, b: seen.append((a, b)))
    assert len(errors) == 44
    assert seen[-1] == (44, 44)
    for name, kinds in errors.items():
        order = ["Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K"]
        assert [kinds[k] for k in order] == sorted(kinds[k] for k in order), name
        assert 0.01 < kinds["Q3_K"] < 0.05, name
    losses = expected_losses(errors, 6)
    for name, kinds in losses.items():
        assert kinds["Q4_K"] == pytest.approx(GAINS[role(name)] * errors[name]["Q4_K"])
    deep = expected_losses(errors, 60)
    assert deep["output.weight"] == losses["output.weight"]
    assert deep["blk.0.attn_v.weight"]["Q4_K"] == pytest.approx(
        losses["blk.0.attn_v.weight"]["Q4_K"] / 10
    )


def test_mixtures_and_short_rows_fit_a_size_too(tmp_path: Path) -> None:
    folder = qwen3moe(tmp_path / "c", layers=1, experts=2)
    mix = fit_size(folder, Target(bits_per_weight=5.0), threads=2)
    done = convert(folder, tmp_path / "m.gguf", mix.filetype, threads=2, overrides=mix.overrides)
    header = read_header(done.path)
    count = sum(math.prod(tensor.shape) for tensor in header.tensors)
    assert done.tensor_bytes == mix.tensor_bytes <= count * 5 / 8


@pytest.mark.parametrize("bits", [0.0, -3.0, 33.0, float("nan")])
def test_a_target_that_makes_no_sense(bits: float, tmp_path: Path) -> None:
    with pytest.raises(BadRecipeError, match="between 0 and 32"):
        fit_size(POCKET, Target(bits_per_weight=bits))


def test_the_smallest_mix_is_named(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", layers=1, vocab=300)
    with pytest.raises(BadRecipeError, match="the smallest mix has") as caught:
        fit_size(folder, Target(file_bytes=10_000))
    assert caught.value.code == "target_too_small"


def mixes_against_stock(work: Path, names: list[str], imatrix: Path | None, windows: int) -> None:
    convert(POCKET, work / "base.gguf", "BF16", threads=2)
    files = {}
    for name in names:
        files[name] = work / f"{name}.gguf"
        stock = convert(POCKET, files[name], name, threads=2, imatrix=imatrix)
        mix = fit_size(POCKET, Target(file_bytes=stock.file_bytes), imatrix=imatrix, threads=2)
        files[f"mix {name}"] = work / f"mix-{name}.gguf"
        made = convert(
            POCKET,
            files[f"mix {name}"],
            mix.filetype,
            threads=2,
            imatrix=imatrix,
            overrides=mix.overrides,
        )
        assert 0.99 * stock.file_bytes < made.file_bytes <= stock.file_bytes
        assert made.tensor_bytes == mix.tensor_bytes
        assert mix.loss < mix.stock_loss
    # Not the part of the text that the gains were measured on.
    text = (PROFILES / "calibration" / "evaluation.txt").read_text()[-30_000:]
    found = proof.losses(work / "base.gguf", files, text, windows=windows, threads=2)
    for name in names:
        assert found[f"mix {name}"]["kl"] < 0.85 * found[name]["kl"], found


def test_a_mix_loses_less_than_the_stock_type_of_its_size(tmp_path: Path) -> None:
    mixes_against_stock(tmp_path, ["Q4_K_M", "Q3_K_M"], None, windows=8)


@pytest.mark.slow
def test_a_weighed_mix_loses_less_than_the_weighed_stock_type(tmp_path: Path) -> None:
    convert(POCKET, tmp_path / "bf16.gguf", "BF16", threads=2)
    proof.call(
        {
            "do": "imatrix",
            "model": str(tmp_path / "bf16.gguf"),
            "text": (PROFILES / "calibration" / "calibration.txt").read_text()[:60_000],
            "chunks": 24,
            "output": str(tmp_path / "i.gguf"),
        }
    )
    assert len(read_imatrix(tmp_path / "i.gguf").tensors) == 42
    names = ["Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"]
    mixes_against_stock(tmp_path, names, tmp_path / "i.gguf", windows=64)
