"""A folder of weights: the model that was named, one of its own, or an error that says what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekit.catalogue import find_device, find_model
from edgekit.errors import EdgekitError
from edgekit.fit import choose
from edgekit.source import card_for
from tests.support.cli import POCKET

CONFIG = json.loads((POCKET / "config.json").read_text())


def folder_with(tmp_path: Path, **changes: object) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return tmp_path


def test_a_name_is_a_name(tmp_path: Path) -> None:
    assert card_for("mistral-3-small", None).id == "mistral-small-24b-2501"
    assert card_for("pocket", folder_with(tmp_path)).id == "pocket"


@pytest.mark.parametrize("name", ["my-model", "code-llama-4"])
def test_a_folder_gives_weights_to_a_name_without_any(name: str, tmp_path: Path) -> None:
    card = card_for(name, folder_with(tmp_path))
    pocket = find_model("pocket")
    assert (card.id, card.params, card.n_ctx_train) == (name, pocket.params, 16384)
    assert abs(card.header_bytes - pocket.header_bytes) < 100_000
    assert card.licence.commercial_use is None
    assert choose(card, find_device("a10"), users=2).filetype == "Q8_0"


@pytest.mark.parametrize(
    ("name", "changes", "exit_code", "code"),
    [
        ("pocket", {"hidden_size": 512}, 65, "source_is_another_model"),
        ("mistral-3-small", {}, 65, "source_is_another_model"),
        ("mine", {"architectures": ["NovelForCausalLM"], "model_type": "novel"}, 65, None),
        ("mine", {"max_position_embeddings": None}, 65, "bad_config"),
        ("../mine", {}, 2, "bad_model_name"),
    ],
)
def test_a_wrong_folder_is_named(
    name: str, changes: dict[str, object], exit_code: int, code: str | None, tmp_path: Path
) -> None:
    with pytest.raises(EdgekitError) as caught:
        card_for(name, folder_with(tmp_path, **changes))
    assert caught.value.exit_code == exit_code
    assert code in (None, caught.value.code)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "exit_code"), [(None, 66), ("{", 65), ("[]", 65), ("[" * 100_000, 65)]
)
def test_a_broken_config_is_named(text: str | None, exit_code: int, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(EdgekitError) as caught:
        card_for("mine", tmp_path)
    assert caught.value.exit_code == exit_code


def test_a_name_without_weights_needs_a_folder() -> None:
    with pytest.raises(EdgekitError) as caught:
        card_for("code-llama-4", None)
    assert (caught.value.exit_code, caught.value.code) == (66, "model_not_published")
