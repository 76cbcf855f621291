"""Names that no public weights carry: judged by their nearest models, run only with weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgekit.catalogue import load_absent
from tests.support.cli import POCKET, Cli

ABSENT = load_absent()
DENSE: dict[str, Any] = {
    **json.loads((POCKET / "config.json").read_text()),
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
}
MIXTURE: dict[str, Any] = {
    "architectures": ["Llama4ForConditionalGeneration"],
    "model_type": "llama4",
    "text_config": {
        "model_type": "llama4_text",
        "hidden_size": 256,
        "intermediate_size": 256,
        "intermediate_size_mlp": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 4096,
        "max_position_embeddings": 32768,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "use_qk_norm": True,
        "tie_word_embeddings": False,
    },
}


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    return Cli(tmp_path_factory.mktemp("absent"))


@pytest.mark.parametrize("name", sorted(ABSENT))
def test_fit_judges_each_of_the_nearest_under_the_name(cli: Cli, name: str) -> None:
    done = cli.run("fit", name, "--device", "a10", "--filetype", "Q4_K_M", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert [row["model"] for row in record["rows"]] == list(ABSENT[name].nearest)
    (absent,) = record["absent"]
    assert absent["id"] == name
    assert "No public weights" in absent["why"]
    told = cli.run("fit", name, "--device", "a10", "--filetype", "Q4_K_M").stdout
    assert told.index("none published under it") < told.index(f"{ABSENT[name].nearest[0]} on")
    shown = cli.run("models", "show", name).stdout
    assert all(near in shown for near in ABSENT[name].nearest)


def test_deploy_stops_with_the_choices(cli: Cli) -> None:
    done = cli.run("deploy", "code-llama-4", "--dry-run", "--device", "a10")
    assert done.returncode == 66
    for near in ABSENT["code-llama-4"].nearest:
        assert near in done.stderr
    assert "meta-llama/Llama-4-Scout-17B-16E-Instruct" in done.stderr
    assert "--source" in done.stderr


@pytest.mark.parametrize("config", [DENSE, MIXTURE], ids=["dense", "mixture"])
def test_weights_of_ones_own_are_planned_under_the_name(
    cli: Cli, tmp_path: Path, config: dict[str, Any]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = cli.run(
        "deploy", "code-llama-4", "--source", tmp_path, "--device", "a10", "--dry-run", "--json"
    )
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)["plan"]
    assert str(tmp_path) in json.dumps(plan)
    fitted = cli.run("fit", "code-llama-4", "--source", tmp_path, "--device", "a10", "--json")
    rows = json.loads(fitted.stdout)["rows"]
    assert {row["model"] for row in rows} == {"code-llama-4"}
    assert rows[0]["verdict"] == "fits"
    assert "absent" not in json.loads(fitted.stdout)
