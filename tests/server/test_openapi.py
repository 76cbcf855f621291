"""Our own OpenAPI document, fuzzed by schemathesis against the whole server with real weights."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from edgekit_server.app import Server
from tests.support.http_server import config_for, running
from tests.support.pocket import convert_pocket

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance"


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = convert_pocket(tmp_path_factory.mktemp("pocket"))
    config = config_for(path)
    # A short context keeps answers without a limit short.
    engine = replace(config.engine, n_ctx=512, n_seq_max=4)
    with running(replace(config, engine=engine)) as server:
        yield server


def test_every_reference_resolves_and_every_operation_is_described(pocket: Server) -> None:
    document = httpx.get(f"{pocket.url}/openapi.json").json()
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    text = json.dumps(document)
    used = {part.split('"')[0] for part in text.split('"$ref": "')[1:]}
    assert used <= known, used - known
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation.get("description"), (method, path)
            assert {"200", "400", "401", "404", "503"} <= operation["responses"].keys()


def fuzz(server: Server, folder: Path, n: int) -> int:
    """Run up to `n` cases per operation; return how many ran in all."""
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json",
        "--checks", CHECKS, "--phases", "fuzzing", "--max-examples", str(n), "--seed", "7",
        "--request-timeout", "60", "--no-shrink", "--suppress-health-check", "all",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout[-6000:]
    cases = re.search(r"([\d,]+) generated", done.stdout)
    assert cases is not None, done.stdout[-2000:]
    assert "Skipped" not in done.stdout, done.stdout[-2000:]
    return int(cases[1].replace(",", ""))


def test_no_5xx_and_no_undocumented_status(pocket: Server, tmp_path: Path) -> None:
    assert fuzz(pocket, tmp_path, 8) > 50
    assert httpx.get(f"{pocket.url}/readyz").status_code == 200


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_no_5xx_in_five_thousand_cases(pocket: Server, tmp_path: Path) -> None:
    assert fuzz(pocket, tmp_path, 250) >= 5000
    assert httpx.get(f"{pocket.url}/readyz").status_code == 200
