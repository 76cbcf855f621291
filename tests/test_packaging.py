"""The wheel holds exactly the four packages, and works in an environment of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOP_LEVEL = {"edgekit", "edgekit_profiles", "edgekit_quantize", "edgekit_server"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_top_level_is_the_four_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {n.split("/")[0] for n in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == TOP_LEVEL
    assert not [n for n in names if "pocket_recipe" in n or n.startswith("tests")]
    assert "edgekit_profiles/pocket/model.safetensors.index.json" in names
    assert "edgekit_server/chat/specs/mistral-v13.toml" in names
    web = ROOT / "server" / "edgekit_server" / "web"
    assert {f"edgekit_server/web/{file.name}" for file in web.iterdir()} <= set(names)


def test_an_installed_wheel_plans_without_a_compiler(wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "venv"
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", wheel], check=True)
    command = [place / "bin" / "edgekit", "fit", "mistral-3-small", "--device", "a10", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)["rows"]
    assert rows[0]["verdict"] == "fits"
    frozen = subprocess.run(
        [python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True
    )
    installed = {p["name"].lower() for p in json.loads(frozen.stdout)}
    assert not installed & {"llama-cpp-python", "llama_cpp_python", "numpy", "fastapi"}
