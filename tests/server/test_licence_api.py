"""GET /licence through a real server: several models, and one that nobody spoke of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import httpx

from edgekit_server.config import ModelConfig, Notice
from tests.support.http_server import config_for, running
from tests.support.stub_engine import StubEngine


def test_each_model_has_its_notice(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF")
    config = config_for(model)
    llama = Notice("Llama 4 Community License Agreement", "Built with Llama", "the agreement\n")
    other = replace(config.engine, model_id="other")
    models = (ModelConfig(config.engine, notice=llama), ModelConfig(other))
    config = replace(config, aliases=(), models=models)
    with running(config, StubEngine([], tmp_path / "log").spawn) as server:
        text = httpx.get(f"{server.url}/v1/licence").text
        assert "Built with Llama" in text
        assert "the agreement" in text
        assert "nobody told this server" in text
        data = httpx.get(f"{server.url}/licence", headers={"accept": "application/json"}).json()
    assert [entry["shown"] for entry in data["data"]] == ["Built with Llama", None]
    assert data["data"][1] == {"model": "other", "licence": None, "shown": None, "text": None}
