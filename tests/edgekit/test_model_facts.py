"""Every catalogue entry against facts collected apart from it (tests/data/model_facts.json)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from edgekit import catalogue, kv, memory, weights
from edgekit.shape import shape, text_config
from edgekit.source import cards_for

FACTS = json.loads((Path(__file__).parents[1] / "data" / "model_facts.json").read_text())
MODELS = catalogue.load_models()
PROFILES = Path(catalogue.__file__).parents[1] / "profiles" / "edgekit_profiles"

# Made up by the conversion: unit scales for two norms; divisors of Llama 3's frequencies.
MADE_UP = {"muse-glimmer-30b": 2 * 52 * 128, "llama-3.3-70b": 64, "llama-4-scout": 64}
# Where the catalogue is more careful than the source: the card's promise, not the config's.
SHORTER = {"mistral-small-4-119b-2603": 262_144}
# The repository of the entry has other bytes than the text part in bf16 (vision, FP8).
OTHER_BYTES = {"ministral-3-14b-2512", "ministral-3-8b-2512", "ministral-3-3b-2512"}


def test_every_model_of_the_facts_is_there() -> None:
    assert set(FACTS) <= set(MODELS)
    assert set(MODELS) - set(FACTS) == {"pocket", "qwen2.5-coder-1.5b"}


@pytest.mark.parametrize("name", sorted(FACTS))
def test_an_entry_agrees_with_the_facts(name: str) -> None:
    card, facts = MODELS[name], FACTS[name]
    text = text_config(card.config)
    s = shape(card.config)
    (source,) = card.sources
    assert source.location in facts["repositories"]
    # One was pinned from another source.
    assert facts["revision"] in (source.revision, None)
    assert card.licence.spdx == facts["licence"]
    assert card.licence.commercial_use is facts["commercial_use"]
    assert card.licence.mau_limit == facts["mau_limit"]
    assert card.gguf_arch == facts["gguf_arch"]
    total = facts["params_text"] if name == "deepseek-v3" else facts["params_total"]
    assert card.params == total
    assert (s.n_layer, s.n_embd, s.n_head) == (facts["layers"], facts["width"], facts["heads"])
    assert (s.n_head_kv, s.head_dim) == (facts["kv_heads"], facts["head_dim"])
    assert s.n_vocab == facts["vocab"]
    assert bool(text.get("tie_word_embeddings")) is facts["tied"]
    assert text["rms_norm_eps"] == facts["norm_eps"]
    rope = text.get("rope_parameters", text)
    assert isinstance(rope, dict)
    assert rope["rope_theta"] == facts["theta"]
    assert card.n_ctx_train == SHORTER.get(name, facts["context"])
    if name not in OTHER_BYTES and facts["bytes"] is not None:
        assert source.bytes == facts["bytes"]
    e = s.experts
    if e is None:
        assert facts["experts"] is None
        assert s.n_ff == facts["ffn"]
    else:
        assert (e.count, e.used, e.n_ff) == (
            facts["experts"],
            facts["experts_used"],
            facts["expert_ffn"],
        )
        assert e.n_ff_shared == facts["shared"] * e.n_ff
        assert card.params_active is not None
    assert card.released is not None
    assert facts["released"].find(card.released) >= 0


@pytest.mark.parametrize("name", sorted(FACTS))
def test_the_tensors_hold_the_published_parameters(name: str) -> None:
    card, facts = MODELS[name], FACTS[name]
    tensors, _, s = weights._tensors(json.dumps(card.config, sort_keys=True), card.gguf_arch)
    count = sum(math.prod(tensor.shape) for tensor in tensors)
    assert count == facts["params_text"] + MADE_UP.get(name, 0)
    table = kv.table(s)
    if facts["kv_growing"] is not None:
        assert table.full[0] == facts["kv_growing"]
        assert table.full[0] + table.windowed[0] == facts["kv_without_window"]
        assert table.window == (facts["window"] or 0)


@pytest.mark.parametrize("name", sorted(FACTS))
def test_a_token_reads_the_published_share(name: str) -> None:
    card, facts = MODELS[name], FACTS[name]
    wide = memory.weights(card, "F32")
    # Counted in parameters: F32 is four bytes each, but for what the checkpoint holds in MXFP4.
    biases = 24 * 32 * 3 * 2880
    native = wide.experts - 4 * biases if name == "gpt-oss-20b" else 0
    used = 4 * native // 32
    read = (wide.read_per_token - used) / 4 + used * 32 / 17
    assert read == pytest.approx(facts["read_per_token"], rel=4e-4)


def test_gpt_oss_keeps_its_experts() -> None:
    card = MODELS["gpt-oss-20b"]
    assert memory.weights(card, "F32").experts == memory.weights(card, "Q4_K_M").experts
    # 24 layers of 32 experts, three matrices of 2880 x 2880 at 17 bytes for 32 values, and
    # their biases in F32.
    experts = 24 * 32 * 3 * (2880 * 2880 * 17 // 32 + 4 * 2880)
    assert memory.weights(card, "Q4_K_M").experts == experts


@pytest.mark.parametrize("card", MODELS.values(), ids=list(MODELS))
def test_an_entry_is_complete(card: catalogue.ModelCard) -> None:
    licence = card.licence
    free = licence.spdx in ("Apache-2.0", "MIT")
    assert licence.acceptance_required is not free
    assert (licence.text is not None) is free
    assert licence.url
    assert licence.conditions
    if licence.text:
        assert (PROFILES / "licences" / licence.text).is_file()
    if card.id == "pocket":
        return
    assert card.facts_from
    assert not card.evidence or card.evidence_source
    for source in card.sources:
        assert any(name.startswith("LICENSE") for name in source.allow)
        assert not any("consolidated" in name or "/" in name for name in source.allow)
        assert source.bytes or card.config.get("quantization_config") or "glimmer" in card.id


def test_the_eu_clause_is_on_the_multimodal_llamas_alone() -> None:
    with_clause = {c.id for c in MODELS.values() if c.licence.eu_clause}
    assert with_clause == {"llama-4-scout", "llama-4-maverick"}
    assert all(c.licence.attribution for c in MODELS.values() if "lama" in c.id)
    assert MODELS["codestral-22b-v0.1"].licence.commercial_use is False


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        (
            "code-llama-4",
            ["llama-4-scout", "llama-4-maverick", "codellama-70b", "llama-3.3-70b"],
        ),
        ("deepseek-coder-v3", ["deepseek-coder-v2-lite", "deepseek-coder-v2", "deepseek-v3"]),
    ],
)
def test_an_absent_name_leads_to_real_models(name: str, nearest: list[str]) -> None:
    absent, cards = cards_for(name, None)
    assert absent is not None
    assert [card.id for card in cards][: len(nearest)] == nearest
    assert len(cards) == len(absent.nearest)
    assert not any(card.id == name for card in cards)


def test_a_benchmark_shape_is_judged_by_its_full_name_only() -> None:
    absent, (card,) = cards_for("Llama-2-70B", None)
    assert absent is None
    assert (card.id, card.sources) == ("llama-2-70b", ())
    assert card.id not in MODELS
