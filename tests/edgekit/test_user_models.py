"""Entries of the user's own: written from config.json, read back, refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import catalogue, user_models
from edgekit.errors import EdgekitError
from edgekit.tables import load_toml
from tests.support import hub_server
from tests.support.cli import POCKET, Cli

CONFIG: dict[str, Any] = json.loads((POCKET / "config.json").read_text())
CARD = "---\nlicense: Apache-2.0\ntags: [x]\n---\n# A model\nlicense: mit\n"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty catalogue of the user's."""
    folder = tmp_path / "catalogue"
    folder.mkdir()
    monkeypatch.setenv("EDGEKIT_CATALOGUE", str(folder))
    catalogue.forget()
    yield folder
    catalogue.forget()


def checkpoint(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    (folder / "README.md").write_text(CARD)
    (folder / "model.safetensors").write_bytes(bytes(100))
    return folder


def test_a_folder_becomes_an_entry(own: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "My Model_7B", sliding_window=None)
    path = user_models.add(str(folder), None)
    assert path == own / "models" / "my-model-7b.toml"
    card = catalogue.find_model("my-model-7b")
    assert card.config == {**CONFIG, "sliding_window": None}
    assert card.params == catalogue.find_model("pocket").params
    assert card.licence.name == "apache-2.0, as its README.md says"
    assert card.licence.commercial_use is None
    assert card.licence.acceptance_required
    (source,) = card.sources
    assert (source.kind, source.location, source.bytes) == ("folder", str(folder), 100)
    assert list(path.parent.iterdir()) == [path]


def test_nested_configs_come_back_as_they_were(own: Path, tmp_path: Path) -> None:
    config = dict(catalogue.find_model("devstral-small-2").config)
    config["odd key \x7f"] = {"ünïcode": ['"', "\\", "\n"], "none": None}
    folder = checkpoint(tmp_path / "x")
    (folder / "config.json").write_text(json.dumps(config))
    user_models.add(str(folder), "nested")
    assert catalogue.find_model("nested").config == config


@pytest.mark.parametrize(
    ("name", "code"),
    [("pocket", "name_taken"), ("mistral-3-small", "name_taken"), ("code-llama-4", "name_taken"),
     ("///", "bad_model_name"), ("x" * 81, "bad_model_name")],
)  # fmt: skip
def test_a_name_must_be_free_and_be_one(own: Path, tmp_path: Path, name: str, code: str) -> None:
    with pytest.raises(EdgekitError) as caught:
        user_models.add(str(checkpoint(tmp_path / "x")), name)
    assert caught.value.code == code
    assert caught.value.hint
    assert not (own / "models").exists()


def test_an_entry_is_replaced_only_when_asked(own: Path, tmp_path: Path) -> None:
    folder = str(checkpoint(tmp_path / "x"))
    user_models.add(folder, "mine")
    with pytest.raises(EdgekitError, match="name of mine"):
        user_models.add(folder, "mine")
    user_models.add(str(checkpoint(tmp_path / "x", rope_theta=5.0)), "mine", replace=True)
    assert catalogue.find_model("mine").config["rope_theta"] == 5.0


@pytest.mark.parametrize(
    ("changes", "exit_code"),
    [
        ({"architectures": ["NovelForCausalLM"]}, 65),
        ({"hidden_size": -1}, 65),
        ({"num_hidden_layers": 10**9}, 65),
        ({"max_position_embeddings": None}, 65),
        ({"note": "\ud800"}, 65),
        ({"list": [None]}, 65),
        ({"huge": float("inf")}, 65),
    ],
)
def test_what_cannot_be_planned_is_refused(
    own: Path, tmp_path: Path, changes: dict[str, Any], exit_code: int
) -> None:
    with pytest.raises(EdgekitError) as caught:
        user_models.add(str(checkpoint(tmp_path / "x", **changes)), "x")
    assert caught.value.exit_code == exit_code
    assert not list(own.rglob("*.toml"))


@pytest.mark.parametrize("place", ["nowhere", "./nowhere", "a/b/c"])
def test_no_folder_and_no_repository_is_missing(own: Path, place: str) -> None:
    with pytest.raises(EdgekitError) as caught:
        user_models.add(place, None)
    assert caught.value.exit_code == 66


def test_a_repository_is_pinned_and_only_two_small_files_are_fetched(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_server.running() as hub:
        files = {
            "config.json": json.dumps(CONFIG).encode(),
            "README.md": CARD.encode(),
            "model-00001-of-00001.safetensors": bytes(5000),
            "tokenizer.json": b"{}",
        }
        hub.add("org/Their-Model", files)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        user_models.add("org/Their-Model", None)
        paths = [ask.path for ask in hub.content_requests() if "/resolve/" in ask.path]
        asked = {path.rsplit("/", 1)[-1] for path in paths}
    (source,) = catalogue.find_model("their-model").sources
    assert (source.kind, source.location) == ("hub", "org/Their-Model")
    assert source.revision == hub_server.COMMIT
    assert source.bytes == 5000
    assert set(source.allow) == set(files)
    assert asked == {"config.json", "README.md"}


JSON = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), JSON, max_size=4))
def test_any_object_survives_toml(values: dict[str, object]) -> None:
    import tomllib

    text = "\n".join(user_models._table("config", values))
    assert tomllib.loads(text)["config"] == values


def test_the_command_says_what_to_do_next(own: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "mine")
    run = Cli(tmp_path, {"EDGEKIT_CATALOGUE": str(own)}).run
    done = run("models", "add", str(folder), "--name", "own-7b", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"][0]["id"] == "own-7b"
    shown = run("models", "show", "own-7b")
    assert "use not read up" in shown.stdout
    again = run("models", "add", str(folder), "--name", "own-7b")
    assert again.returncode == 2
    assert "--force" in again.stderr
    assert run("models", "--name", "x").returncode == 2
    assert run("models", "add").returncode == 2
    assert load_toml(own / "models" / "own-7b.toml").text("id") == "own-7b"
