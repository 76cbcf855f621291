"""The embedded model is what its card and the issue of its making say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer

ROOT = Path(__file__).parents[2]
POCKET = ROOT / "profiles" / "edgekit_profiles" / "pocket"
RECIPE = ROOT / "profiles" / "pocket_recipe"
CONFIG = json.loads((POCKET / "config.json").read_text())
RESULTS = json.loads((RECIPE / "results.json").read_text())
CARD = (POCKET / "README.md").read_text()


def test_shape_is_mistrals() -> None:
    assert CONFIG["architectures"] == ["MistralForCausalLM"]
    assert CONFIG["num_attention_heads"] == 4 * CONFIG["num_key_value_heads"]
    assert not CONFIG["tie_word_embeddings"]
    for rows in ("hidden_size", "intermediate_size"):
        assert CONFIG[rows] % 256 == 0
    assert CONFIG["max_position_embeddings"] >= 8192


def test_weights_are_small_and_sharded() -> None:
    index = json.loads((POCKET / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] <= 16_000_000
    assert len(set(index["weight_map"].values())) > 1


CONTROL = {
    "<s>": 1, "</s>": 2, "[INST]": 3, "[/INST]": 4, "[AVAILABLE_TOOLS]": 5, "[TOOL_CALLS]": 9,
    "[TOOL_RESULTS]": 7, "[PREFIX]": 14, "[SUFFIX]": 16, "[SYSTEM_PROMPT]": 17, "[ARGS]": 32,
}  # fmt: skip


@pytest.mark.parametrize(("text", "token"), CONTROL.items())
def test_control_tokens_have_mistrals_ids(text: str, token: int) -> None:
    tokenizer = Tokenizer.from_file(str(POCKET / "tokenizer.json"))
    assert tokenizer.token_to_id(text) == token
    assert tokenizer.encode(text, add_special_tokens=False).ids == [token]


def test_measured_figures_reach_what_was_promised() -> None:
    assert RESULTS["bits_per_byte"] <= 0.95 * RESULTS["xz_bits_per_byte"]
    assert RESULTS["tool_calls_exact"] >= 0.90
    assert RESULTS["chains_finished_with_the_right_answer"] >= 0.80
    assert RESULTS["fim_lines_exact"] is not None


def test_the_card_states_the_measured_figures() -> None:
    assert "toy" in CARD
    for key in ("bits_per_byte", "xz_bits_per_byte"):
        assert f"{RESULTS[key]:.3f}" in CARD, key
    for key in ("tool_calls_exact", "chains_finished_with_the_right_answer", "fim_lines_exact"):
        assert f"{100 * RESULTS[key]:.1f} %" in CARD, key


def test_manifest_names_every_file_once() -> None:
    manifest = json.loads((RECIPE / "manifest.json").read_text())
    assert len(manifest["files"]) > 1000
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in manifest["files"].values())
    assert manifest["xz_bits_per_byte"] == RESULTS["xz_bits_per_byte"]
