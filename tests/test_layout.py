"""The rules of the house, checked on the source itself."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "edgekit": ROOT / "edgekit",
    "edgekit_profiles": ROOT / "profiles" / "edgekit_profiles",
    "edgekit_quantize": ROOT / "quantize" / "edgekit_quantize",
    "edgekit_server": ROOT / "server" / "edgekit_server",
}
MAY_IMPORT = {
    "edgekit": {"edgekit_profiles", "edgekit_quantize", "edgekit_server"},
    "edgekit_profiles": set(),
    "edgekit_quantize": set(),
    "edgekit_server": set(),
}
NATIVE = {
    "quantize/edgekit_quantize/llama.py",
    "server/edgekit_server/engine/native.py",
}
MAX_LINES = 400
MEDIAN_LINES = 150
SOURCES = {name: sorted(folder.rglob("*.py")) for name, folder in PACKAGES.items()}
FILES = [(name, file) for name, files in SOURCES.items() for file in files]


def imports(file: Path, *, top_level_only: bool = False) -> set[str]:
    """Return the first words of all absolute imports in a file."""
    tree = ast.parse(file.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@pytest.mark.parametrize(("package", "file"), FILES, ids=[name_of(f) for _, f in FILES])
def test_imports_keep_to_the_layers(package: str, file: Path) -> None:
    others = imports(file) & set(PACKAGES) - {package}
    assert others <= MAY_IMPORT[package]
    assert not imports(file) & {"server", "quantize", "profiles", "tests"}


def test_two_files_import_the_native_library() -> None:
    assert {name_of(f) for _, f in FILES if "llama_cpp" in imports(f)} == NATIVE


def test_the_front_never_imports_the_native_door() -> None:
    front = [f for f in SOURCES["edgekit_server"] if "engine" not in f.parts]
    for file in front:
        text = file.read_text()
        assert "engine.native" not in text, name_of(file)
        assert "import native" not in text, name_of(file)


def test_only_the_command_line_prints() -> None:
    for _, file in FILES:
        if "edgekit/cli/" in name_of(file):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            is_print = isinstance(called, ast.Name) and called.id == "print"
            # Children answer their parent on standard output.
            assert not is_print or name_of(file) in CHILDREN, name_of(file)


CHILDREN: set[str] = set()


def test_modules_are_small() -> None:
    lines = {name_of(f): len(f.read_text().splitlines()) for _, f in FILES}
    assert {n: c for n, c in lines.items() if c > MAX_LINES} == {}
    assert sorted(lines.values())[len(lines) // 2] <= MEDIAN_LINES


def test_every_folder_says_what_it_is() -> None:
    for folder in ("edgekit", "profiles", "quantize", "server", "tests"):
        assert (ROOT / folder / "README.md").is_file(), folder


def test_planning_needs_no_heavy_package() -> None:
    """The fit report installs with no compiler, and --help stays quick."""
    import subprocess

    heavy = ["llama_cpp", "numpy", "fastapi", "uvicorn", "msgpack", "jinja2", "rich", "httpx"]
    code = (
        "import sys\n"
        f"for name in {heavy!r}: sys.modules[name] = None\n"
        "from edgekit.cli import build\n"
        "build()\n"
        "import edgekit.fit, edgekit.catalogue, edgekit.plan, edgekit.quality as _\n"
    ).replace(", edgekit.quality as _", "")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
