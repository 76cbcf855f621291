"""Folders that are incomplete, mixed up or of a kind we refuse."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from edgekit.errors import from_foreign
from edgekit_quantize import errors
from edgekit_quantize.checkpoint import Checkpoint, file_digests
from edgekit_quantize.errors import BadCheckpointError, MissingFileError, QuantizeError
from edgekit_quantize.provenance import listing_digest
from tests.support.checkpoints import make_checkpoint, write_safetensors

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(
        tmp_path_factory.mktemp("pristine"), vocab=280, hidden=32, ffn=32, head_dim=8, shards=3
    )


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "c"))


def refusal(folder: Path) -> QuantizeError:
    with pytest.raises(QuantizeError) as caught:
        Checkpoint(folder)
    assert caught.value.code
    return caught.value


def edit_index(folder: Path, **moved: str | None) -> None:
    index = json.loads((folder / INDEX).read_text())
    for name, file in moved.items():
        key = name.replace("__", ".")
        if file is None:
            del index["weight_map"][key]
        else:
            index["weight_map"][key] = file
    (folder / INDEX).write_text(json.dumps(index))


def test_opens_a_whole_one(folder: Path) -> None:
    with Checkpoint(folder) as checkpoint:
        assert len(checkpoint.shards) == 3
        assert checkpoint.tensor("model.norm.weight").shape == (32,)
        names = [path.name for path in checkpoint.files()]
        assert names == sorted(names)
        assert {"config.json", "tokenizer.json", INDEX} <= set(names)


def test_a_missing_shard(folder: Path) -> None:
    (folder / "model-00002-of-00003.safetensors").unlink()
    error = refusal(folder)
    assert (error.code, error.exit_code) == ("missing_shard", 66)
    assert "model-00002-of-00003" in str(error)


def test_a_missing_shard_without_an_index(folder: Path) -> None:
    (folder / INDEX).unlink()
    Checkpoint(folder).close()
    (folder / "model-00003-of-00003.safetensors").unlink()
    error = refusal(folder)
    assert (error.code, error.exit_code) == ("missing_shard", 66)


def test_a_truncated_shard(folder: Path) -> None:
    shard = folder / "model-00001-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    error = refusal(folder)
    assert (error.code, error.exit_code) == ("truncated", 65)


def test_a_tensor_stored_twice(folder: Path) -> None:
    (folder / INDEX).unlink()
    write_safetensors(folder / "model-extra.safetensors", {"model.norm.weight": ("U8", (1,), b"x")})
    assert refusal(folder).code == "duplicate_tensor"


def test_index_and_shards_of_different_revisions(folder: Path) -> None:
    edit_index(folder, model__norm__weight="model-00001-of-00003.safetensors")
    assert refusal(folder).code == "index_mismatch"


def test_index_that_forgets_a_tensor(folder: Path) -> None:
    edit_index(folder, model__norm__weight=None)
    assert refusal(folder).code == "index_mismatch"


@pytest.mark.parametrize("name", ["../../etc/passwd.safetensors", "/abs.safetensors", "x.bin", ""])
def test_index_that_points_elsewhere(name: str, folder: Path) -> None:
    edit_index(folder, model__norm__weight=name)
    assert refusal(folder).code == "bad_index"


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": {}}', '{"weight_map": 3}', "\xff"])
def test_index_that_is_nonsense(text: str, folder: Path) -> None:
    (folder / INDEX).write_bytes(text.encode("latin-1"))
    assert refusal(folder).code in ("bad_json", "bad_index")


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": ' * 5000])
def test_config_that_is_no_json(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    error = refusal(folder)
    assert (error.code, error.exit_code) == ("bad_json", 65)


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    error = refusal(folder)
    assert (error.code, error.exit_code) == ("missing_file", 66)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "weights.ckpt", "consolidated.00.pth"]
)
def test_pickled_weights_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"\x80\x04.")
    error = refusal(tmp_path)
    assert (error.code, error.exit_code) == ("pickle_refused", 65)
    assert name in str(error)


def test_no_weights_no_folder_and_the_native_layout(tmp_path: Path) -> None:
    assert refusal(tmp_path).code == "no_weights"
    assert refusal(tmp_path / "nowhere").code == "no_such_folder"
    write_safetensors(tmp_path / "consolidated.safetensors", {})
    assert refusal(tmp_path).code == "native_layout"


def test_digests_are_sha256sums(folder: Path) -> None:
    seen: list[int] = []
    with Checkpoint(folder) as checkpoint:
        paths = checkpoint.files()
    digests = file_digests(paths, {}, 2, seen.append)
    assert (
        digests["config.json"] == hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    )
    assert sum(seen) == sum(path.stat().st_size for path in paths)
    names = [path.name for path in paths]
    by_hand = subprocess.run(
        "sha256sum " + " ".join(names) + " | LC_ALL=C sort -k2 | sha256sum",
        shell=True, cwd=folder, capture_output=True, text=True, check=True,
    ).stdout.split()[0]  # fmt: skip
    assert listing_digest(digests) == f"sha256:{by_hand}"


def test_known_digests_are_believed(tmp_path: Path) -> None:
    assert file_digests([tmp_path / "gone"], {"gone": "ab"}, 1, print) == {"gone": "ab"}


def test_every_error_maps_onto_edgekits_tree() -> None:
    for kind in errors.QuantizeError.__subclasses__():
        mapped = from_foreign(kind("m", code="c", hint="h"))
        assert mapped.exit_code == kind.exit_code
        assert (mapped.code, mapped.hint, str(mapped)) == ("c", "h", "m")
    tree = errors.__doc__ or ""
    assert all(kind.__name__ in tree for kind in errors.QuantizeError.__subclasses__())
    assert issubclass(BadCheckpointError, QuantizeError)
    assert issubclass(MissingFileError, QuantizeError)
