"""`edgekit quantize` with what deviates from a file type: importance, overrides, target sizes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from edgekit_quantize import read_header
from edgekit_quantize.imatrix_file import write_imatrix
from tests.quantize.test_bit_identity import random_sums
from tests.support.checkpoints import make_checkpoint
from tests.support.cli import POCKET, Cli
from tests.support.pocket import convert_pocket


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


@pytest.fixture(scope="module")
def imatrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imatrix")
    sums = random_sums(read_header(convert_pocket(folder, "BF16")))
    write_imatrix(folder / "i.gguf", sums, 3, "random")
    return folder / "i.gguf"


def types(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.type.name for tensor in read_header(path).tensors}


def test_an_importance_matrix_is_used_and_recorded(cli: Cli, imatrix: Path, tmp_path: Path) -> None:
    target = tmp_path / "p.gguf"
    made = cli.json("quantize", POCKET, target, "--filetype", "IQ3_S", "--imatrix", imatrix)
    assert any("i.gguf weighs 43 of 44" in reason for reason in made["reasons"])
    keys = read_header(target).metadata
    assert keys["quantize.imatrix.file"] == "i.gguf"
    assert str(keys["edgekit.imatrix.digest"]).startswith("sha256:")


def test_overrides_of_tensor_types(cli: Cli, tmp_path: Path) -> None:
    target = tmp_path / "p.gguf"
    arguments = ["--tensor-type", r"blk\.0\.ffn_down=Q8_0", "--tensor-type", "attn_v=f16"]
    arguments += ["--output-tensor-type", "q5_k", "--token-embedding-type", "Q3_K", "--pure"]
    plan = cli.json("quantize", POCKET, target, *arguments, "--dry-run")
    made = cli.json("quantize", POCKET, target, *arguments)
    assert made["tensor_bytes"] == plan["tensor_bytes"]
    found = types(target)
    assert found["blk.0.ffn_down.weight"] == "Q8_0"
    assert found["blk.3.attn_v.weight"] == "F16"
    assert (found["output.weight"], found["token_embd.weight"]) == ("Q5_K", "Q3_K")
    assert found["blk.0.ffn_up.weight"] == found["blk.5.ffn_down.weight"] == "Q4_K"
    assert any("blk.0.ffn_down.weight: Q8_0 as asked" in reason for reason in made["reasons"])


def test_a_target_size_and_the_recipe_it_leaves(cli: Cli, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "c", layers=2, vocab=300)
    recipe, target = tmp_path / "mix.toml", tmp_path / "p.gguf"
    size = ["--target-size", "0.9MB", "--recipe-out", recipe]
    plan = cli.json("quantize", source, target, *size, "--dry-run")
    assert (plan["filetype"], plan["tensor_bytes"]) == ("mix", 900_000)
    assert not recipe.exists()
    made = cli.json("quantize", source, target, *size)
    assert 890_000 < made["file_bytes"] <= 900_000
    assert "expected to lose" in made["reasons"][1]
    again = cli.json("quantize", source, tmp_path / "again.gguf", "--recipe", recipe)
    assert again["sha256"] == made["sha256"]
    said = cli.run("quantize", source, tmp_path / "b.gguf", "--target-bpw", "4.5")
    assert said.returncode == 0
    assert "expected to lose" in said.stdout
    tensors = read_header(tmp_path / "b.gguf").tensors
    count = sum(math.prod(tensor.shape) for tensor in tensors)
    assert 4.4 < sum(tensor.bytes for tensor in tensors) * 8 / count <= 4.5


@pytest.mark.parametrize(
    ("arguments", "code", "status"),
    [
        (["--filetype", "IQ2_XXS"], "imatrix_required", 2),
        (["--imatrix", "none.gguf"], "no_such_file", 66),
        (["--tensor-type", "attn_v"], "bad_tensor_type", 2),
        (["--tensor-type", "attn_v=Q9"], "unknown_tensor_type", 2),
        (["--tensor-type", "(=Q8_0"], "bad_pattern", 2),
        (["--target-size", "4MB", "--pure"], "options_clash", 2),
        (["--target-size", "4MB", "--target-bpw", "4"], "options_clash", 2),
        (["--recipe", "r.toml", "--filetype", "Q8_0"], "options_clash", 2),
        (["--recipe", "none.toml"], "no_such_file", 66),
        (["--recipe-out", "r.toml"], "no_target", 2),
        (["--target-size", "1MB"], "target_too_small", 2),
        (["--target-bpw", "99"], "bad_target", 2),
    ],
)
def test_what_is_refused(
    arguments: list[str], code: str, status: int, cli: Cli, tmp_path: Path
) -> None:
    done = cli.run("quantize", POCKET, tmp_path / "p.gguf", *arguments, "--json")
    assert done.returncode == status, done.stderr
    assert f'"code": "{code}"' in done.stdout + done.stderr
    assert not list(tmp_path.glob("*.gguf"))


def test_another_file_is_no_importance_matrix(cli: Cli, tmp_path: Path) -> None:
    model = convert_pocket(tmp_path, "Q8_0")
    done = cli.run("quantize", POCKET, tmp_path / "p.gguf", "--imatrix", model)
    assert done.returncode == 65
    assert "is it a model?" in done.stderr
