"""The catalogue: built-in facts are sound, a user's folder wins, mistakes name file and key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekit import catalogue
from edgekit.errors import ConfigError, EdgekitError, MissingInputError, UsageError
from edgekit.tables import load_toml

PROFILES = Path(catalogue.__file__).parents[1] / "profiles" / "edgekit_profiles"

MODEL = """
id = "mine"
name = "Mine"
aliases = ["my-own"]
params = 10
n_ctx_train = 2048
header_bytes = 1
[licence]
name = "Apache License 2.0"
[config]
hidden_size = 64
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty user catalogue."""
    (tmp_path / "models").mkdir()
    (tmp_path / "devices").mkdir()
    monkeypatch.setenv("EDGEKIT_CATALOGUE", str(tmp_path))
    catalogue._load.cache_clear()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("mistral-3-small", "mistral-small-24b-2501"),
        ("MISTRAL-SMALL-24B-2501", "mistral-small-24b-2501"),
        ("mistralai/Mistral-Small-24B-Instruct-2501", "mistral-small-24b-2501"),
        ("qwen2.5-coder-7b", "qwen2.5-coder-7b"),
        ("pocket", "pocket"),
    ],
)
def test_a_model_is_found_by_id_alias_or_repository(name: str, id: str) -> None:
    assert catalogue.find_model(name).id == id


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("a10", "nvidia-a10"),
        ("rtx-4090", "nvidia-rtx-4090"),
        ("m2-max", "apple-m2-max-38c"),
        ("apple-m2-max-30c", "apple-m2-max-30c"),
        ("this", "this"),
    ],
)
def test_a_device_is_found_by_id_or_alias(name: str, id: str) -> None:
    assert catalogue.find_device(name).id == id


def test_a_memory_size_can_be_picked_where_there_are_several() -> None:
    device = catalogue.find_device("m2-max@64")
    assert (device.id, device.memory_bytes) == ("apple-m2-max-38c@64", 64 * 1024**3)
    with pytest.raises(UsageError, match="no such memory size"):
        catalogue.find_device("m2-max@48")
    with pytest.raises(UsageError) as caught:
        catalogue.find_device("a10@48")
    assert "one size" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "code", "hint"),
    [
        ("mistral-small-3.7", "model_unknown", "mistral-small-3"),
        ("code-llama-4", "model_not_published", "Llama-4-Scout"),
        ("deepseek-coder-v3", "model_not_published", "DeepSeek-Coder-V2"),
    ],
)
def test_an_unknown_model_is_answered_with_real_ones(name: str, code: str, hint: str) -> None:
    with pytest.raises(MissingInputError) as caught:
        catalogue.find_model(name)
    assert caught.value.code == code
    assert caught.value.exit_code == 66
    assert hint in (caught.value.hint or "")


def test_an_unknown_device_is_answered_with_near_names() -> None:
    with pytest.raises(MissingInputError) as caught:
        catalogue.find_device("rtx-4095")
    assert "rtx-4090" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pocket", ("pocket", None)),
        ("mistral-3-small:q4_k_m", ("mistral-3-small", "Q4_K_M")),
    ],
)
def test_a_model_name_may_carry_a_file_type(text: str, expected: tuple[str, str | None]) -> None:
    assert catalogue.split_model_name(text) == expected


@pytest.mark.parametrize("text", [":Q4_K_M", "pocket:Q4_K_Z", "pocket:"])
def test_a_bad_model_name_is_refused(text: str) -> None:
    with pytest.raises(EdgekitError):
        catalogue.split_model_name(text)


def test_every_hub_source_is_pinned_and_filtered() -> None:
    hub = [s for m in catalogue.load_models().values() for s in m.sources if s.kind == "hub"]
    assert hub
    assert all(s.allow for s in hub)
    # A source without a commit says why, and none is both.
    assert all((len(s.revision or "") == 40) != bool(s.unpinned) for s in hub)
    small = [s for s in hub if "24B-Instruct-25" in s.location or s.location.endswith("Coder-7B")]
    assert len(small) > 2
    assert all(s.revision and s.bytes for s in small)


def test_file_types_are_sorted_by_published_loss_and_known_to_the_recipe() -> None:
    from edgekit_quantize.tensor_types import FILE_TYPES

    kinds = catalogue.load_filetypes()
    losses = [k.loss for k in kinds.values()]
    assert losses == sorted(losses)
    assert set(kinds) == set(FILE_TYPES)
    assert not kinds["BF16"].automatic
    assert kinds["BF16"].why_not_automatic


def test_pocket_agrees_with_its_own_config() -> None:
    path = PROFILES / "pocket" / "config.json"
    if not path.is_file():
        pytest.skip("the pocket model is not built yet")
    real = json.loads(path.read_text())
    card = catalogue.find_model("pocket")
    assert {k: real.get(k) for k in card.config} == dict(card.config)
    assert card.n_ctx_train == real["max_position_embeddings"]
    index = json.loads((path.parent / "model.safetensors.index.json").read_text())
    assert card.sources[0].bytes == index["metadata"]["total_size"] == 2 * card.params


def test_a_users_file_adds_a_model_and_replaces_a_device(folder: Path) -> None:
    (folder / "models" / "mine.toml").write_text(MODEL)
    text = (PROFILES / "devices" / "nvidia-a10.toml").read_text()
    (folder / "devices" / "x.toml").write_text(text.replace("watts = 150", "watts = 99"))
    assert catalogue.find_model("my-own").licence.commercial_use is None
    assert catalogue.find_device("a10").watts == 99
    assert "pocket" in catalogue.load_models()


@pytest.mark.parametrize(
    ("broken", "key"),
    [
        (MODEL.replace("params = 10", 'params = "ten"'), "params"),
        (MODEL.replace("params = 10", "params = -1"), "params"),
        (MODEL.replace("params = 10", "params = true"), "params"),
        (MODEL.replace("params = 10", ""), "params"),
        (MODEL.replace("params = 10", "params = 10\nparms = 11"), "parms"),
        (MODEL.replace('id = "mine"', 'id = "Mine Own"'), "id"),
        (MODEL.replace('["my-own"]', '"my-own"'), "aliases"),
        (MODEL.replace("n_ctx_train = 2048", "n_ctx_train = 0"), "n_ctx_train"),
        (MODEL.replace("[licence]", "[licence]\nspdx = 3"), "licence.spdx"),
        (MODEL + '[[sources]]\nkind = "hub"\nlocation = "a/b"\nrevision = "main"', "revision"),
        (MODEL + '[[sources]]\nkind = "ftp"\nlocation = "a/b"', "sources[0].kind"),
        ("id = [", "not valid TOML"),
    ],
)
def test_a_mistake_names_the_file_and_the_key(folder: Path, broken: str, key: str) -> None:
    (folder / "models" / "mine.toml").write_text(broken)
    with pytest.raises(ConfigError) as caught:
        catalogue.load_models()
    assert "mine.toml" in caught.value.message
    assert key in caught.value.message
    assert caught.value.exit_code == 78


@pytest.mark.parametrize("bad", ["bandwidth_gb_s = nan", "bandwidth_gb_s = inf", "watts = -1"])
def test_a_number_that_is_none_is_refused(folder: Path, bad: str) -> None:
    text = (PROFILES / "devices" / "this.toml").read_text()
    (folder / "devices" / "this.toml").write_text(f"{text}\n{bad}\n")
    with pytest.raises(ConfigError, match="must be a finite number"):
        catalogue.load_devices()


def test_two_owners_of_one_name_are_refused(folder: Path) -> None:
    (folder / "models" / "mine.toml").write_text(MODEL.replace("my-own", "mistral-3-small"))
    with pytest.raises(ConfigError, match="claimed by"):
        catalogue.load_models()


def test_a_missing_folder_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEKIT_CATALOGUE", str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match="not a folder"):
        catalogue.load_models()


def test_an_unreadable_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_toml(tmp_path / "gone.toml")


@pytest.mark.parametrize(
    ("vendor", "name", "cores", "id"),
    [
        ("nvidia", "NVIDIA A10", None, "nvidia-a10"),
        ("nvidia", "A10", None, "nvidia-a10"),
        ("nvidia", "NVIDIA A10G", None, "nvidia-a10g"),
        ("nvidia", "NVIDIA GeForce RTX 4090 D", None, "nvidia-rtx-4090-d"),
        ("nvidia", "NVIDIA A10GX", None, None),
        ("apple", "Apple M2 Max", 30, "apple-m2-max-30c"),
        ("apple", "Apple M2 Max", None, None),
        ("amd", "NVIDIA A10", None, None),
    ],
)
def test_a_driver_name_matches_exactly_or_not_at_all(
    vendor: str, name: str, cores: int | None, id: str | None
) -> None:
    found = catalogue.match_device(vendor, name, cores)
    assert (found.id if found else None) == id
