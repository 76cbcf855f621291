"""Files against the unquantized model: order of the types, drift, what is refused."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from edgekit_quantize.answers import digest, grouped
from edgekit_quantize.base_file import MAGIC, BaseFile
from edgekit_quantize.convert import convert
from edgekit_quantize.errors import BadCheckpointError, MissingFileError
from edgekit_quantize.evaluate import Engine, Material, evaluate, float_type
from tests.support import damage, proof
from tests.support.pocket import SOURCE, convert_pocket

# The shipped text: one that does not change when somebody edits a module.
TEXT = (SOURCE.parent / "calibration" / "evaluation.txt").read_text()[:40_000]
RANKED = ("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
PROMPTS = ("def add(a, b):\n    return", "import os\n", "class Point:\n", "for i in range(")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def files(folder: Path) -> dict[str, Path]:
    return {kind: convert_pocket(folder, kind) for kind in RANKED}


@pytest.fixture(scope="module")
def found(files: dict[str, Path]) -> dict[str, Any]:
    spoilt = damage.flip_scales(
        files["Q4_K_M"], files["Q4_K_M"].with_name("spoilt.gguf"), "blk.3.ffn_down.weight"
    )
    tried = {**files, "spoilt": spoilt}
    return proof.losses(files["BF16"], tried, TEXT, windows=4, prompts=PROMPTS)


def test_file_types_rank_as_theory_says(found: dict[str, Any]) -> None:
    means = [found[kind]["kl"] for kind in RANKED]
    assert means == sorted(means)
    # Each step of the ladder is a real one: well beyond both standard errors.
    for better, worse in itertools.pairwise(RANKED):
        error = found[better]["kl_error"] + found[worse]["kl_error"]
        assert found[worse]["kl"] - found[better]["kl"] > 3 * error, (better, worse)
    tops = [found[kind]["same_top"] for kind in RANKED]
    # A share of 512 positions is known to about a hundredth; the order holds within that.
    for better, worse in itertools.pairwise(tops):
        error = math.sqrt(better * (1 - better) / found["BF16"]["positions"])
        assert worse <= better + 2 * error, tops
    assert tops[0] == 1.0 > tops[1] > tops[-1]


def test_the_base_does_not_differ_from_itself(found: dict[str, Any]) -> None:
    own = found["BF16"]
    assert abs(own["kl"]) < 1e-6
    assert own["same_top"] == 1.0
    assert own["ratio"] == pytest.approx(1, abs=1e-4)
    assert own["drifts"] == []
    assert own["positions"] == 4 * 128


def test_damage_stands_out(found: dict[str, Any]) -> None:
    assert found["spoilt"]["kl"] > 5 * found["Q4_K_M"]["kl"]


def test_drift_shows_both_answers(found: dict[str, Any]) -> None:
    drifts = found["spoilt"]["drifts"]
    assert drifts
    for drift in drifts:
        assert drift["before"] != drift["after"]
        assert 0 <= drift["at"] < 16


def test_figures_do_not_depend_on_threads(files: dict[str, Path], found: dict[str, Any]) -> None:
    one = {"Q4_K_M": files["Q4_K_M"]}
    again = proof.losses(files["BF16"], one, TEXT, windows=4, prompts=PROMPTS, threads=3)
    assert again["Q4_K_M"] == found["Q4_K_M"]


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        ([], []),
        ([84], [[0]]),
        ([34, 34], [[0, 1]]),
        ([34, 35], [[0], [1]]),
        ([1, 1, 1, 1, 1], [[0, 1, 2, 3], [4]]),
        ([84, 1, 84], [[0], [1], [2]]),
    ],
)
def test_prompts_share_a_context_where_they_fit(
    lengths: list[int], groups: list[list[int]]
) -> None:
    assert [list(g) for g in grouped(lengths, 100, 4)] == groups


def test_a_prompt_that_cannot_fit_is_refused() -> None:
    with pytest.raises(BadCheckpointError) as caught:
        grouped([3, 85], 100, 4)
    assert caught.value.code == "prompt_too_long"


def test_the_type_that_holds_a_checkpoint() -> None:
    assert float_type(SOURCE) == "BF16"


def test_a_base_over_other_material_is_no_comparison(tmp_path: Path) -> None:
    # Found out before a model is loaded.
    said = {"text": hashlib.sha256(b"a text").hexdigest(), "prompts": digest([[("hi", False)]])}
    base = stored(tmp_path / "a.base", **said)
    for text, prompt, what in (("b text", "hi", "text"), ("a text", "ho", "canary prompts")):
        material = Material(text, (((prompt, False),),))
        with pytest.raises(BadCheckpointError, match=f"another .*{what}") as caught:
            evaluate(tmp_path / "none.gguf", base, material, Engine())
        assert caught.value.code == "other_material"


def stored(path: Path, **changes: object) -> Path:
    header = {
        "n_vocab": 3, "window": 4, "windows": 2, "scored": 2, "tokens": "t", "text": "x",
        "prompts": "p", "answers": [[1, 2]], "made_by": "test", **changes,
    }  # fmt: skip
    text = json.dumps(header).encode()
    path.write_bytes(MAGIC + len(text).to_bytes(4, "little") + text + bytes(2 * 2 * 3 * 2))
    return path


def test_a_stored_base_is_read(tmp_path: Path) -> None:
    base = BaseFile(stored(tmp_path / "a.base"))
    assert base.header.answers == ((1, 2),)
    assert [w.shape for w in base.windows()] == [(2, 3), (2, 3)]


@pytest.mark.parametrize(
    "changes",
    [
        {"n_vocab": 4},
        {"n_vocab": 0},
        {"n_vocab": 1 << 40},
        {"windows": -2},
        {"windows": True},
        {"scored": 0},
        {"answers": [["a"]]},
        {"answers": 3},
        {"unknown": 1},
    ],
)
def test_a_damaged_base_is_refused(changes: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(BadCheckpointError) as caught:
        BaseFile(stored(tmp_path / "a.base", **changes))
    assert (caught.value.code, caught.value.exit_code) == ("bad_base", 65)


@pytest.mark.parametrize("raw", [b"", b"GGUF" * 10, MAGIC, MAGIC + b"\xff\xff\xff\xff{}"])
def test_what_is_no_base_is_refused(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.base"
    path.write_bytes(raw)
    with pytest.raises(BadCheckpointError):
        BaseFile(path)
    with pytest.raises(MissingFileError):
        BaseFile(tmp_path / "none.base")


@pytest.mark.slow
def test_an_importance_matrix_lowers_the_loss(files: dict[str, Path], tmp_path: Path) -> None:
    texts = SOURCE.parent / "calibration"
    matrix = tmp_path / "m.gguf"
    calibration = (texts / "calibration.txt").read_text()
    job = {"do": "imatrix", "model": str(files["BF16"]), "text": calibration, "chunks": 60}
    proof.call({**job, "output": str(matrix)})
    tried: dict[str, Path] = {}
    for kind in ("Q2_K", "IQ3_S", "Q4_0"):
        for name, importance in ((kind, None), (f"{kind} weighed", matrix)):
            tried[name] = tmp_path / f"{name}.gguf"
            convert(SOURCE, tried[name], kind, imatrix=importance)
    tried["IQ2_M"] = tmp_path / "IQ2_M.gguf"
    convert(SOURCE, tried["IQ2_M"], "IQ2_M", imatrix=matrix)
    # Another text than the one it was collected on.
    found = proof.losses(files["BF16"], tried, (texts / "evaluation.txt").read_text())
    kl = {name: figures["kl"] for name, figures in found.items()}
    assert kl["Q2_K weighed"] < 0.98 * kl["Q2_K"]
    assert kl["IQ3_S weighed"] < 0.85 * kl["IQ3_S"]
    assert kl["Q4_0 weighed"] < 0.95 * kl["Q4_0"]
    # Fewer bits, spent better.
    assert kl["IQ2_M"] < kl["Q2_K weighed"]
