"""The script that sets edgekit up from the folder, with nothing but Python."""

from __future__ import annotations

import ast
import atexit
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from edgekit.bundle import seal, start
from edgekit.bundle.bootstrap import README, START, bootstrap_texts
from edgekit.bundle.layout import Layout
from edgekit.bundle.repack import repack
from edgekit.bundle.runtime import requirements_of
from edgekit.bundle.target import Target, this_target
from edgekit.bundle.wheels import add_runtime
from tests.support.cli import Cli
from tests.support.wheel_files import make_wheel

HERE = Target(this_target().os, this_target().arch, sys.version_info[1], "cpu")
OTHER = Target("macos" if HERE.os == "linux" else "linux", "arm64", 12, "cpu")
FAKE = b"""import sys
sys.stdout.write(" ".join(sys.argv[1:]) + "\\n")
if "install" in sys.argv:
    sys.exit(75)
"""
"""An edgekit that says how it was called and cannot install."""


def bundle(root: Path, *targets: Target, **changes: Any) -> Path:
    """A bundle with the bootstrap and, for each target, wheels that pip takes."""
    wheels = root.parent / "wheels"
    wheels.mkdir()
    made = [
        make_wheel(wheels, "edgekit", files={"edgekit/__main__.py": FAKE}),
        make_wheel(wheels, "helper", "2.0", files={"helper.py": b"x = 1\n"}),
        _pip(),
    ]
    layout = Layout(root)
    layout.start()
    entries = []
    for target in targets:
        needs = replace(requirements_of(target, made), **changes)
        entries.append(add_runtime(layout, made, target, needs))
    layout.write_index(entries)
    for name, text in bootstrap_texts([t.text for t in targets], ["pocket Q8_0"]).items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(text)
    seal.close(root, None)
    return root


@cache
def _pip() -> Path:
    place = Path(tempfile.mkdtemp(prefix="edgekit-test-pip-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return repack(distribution("pip"), place)


def run(root: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run it as a user does: another Python process, no home, no environment."""
    home = root.parent / "home"
    return subprocess.run(
        [sys.executable, root / START, *map(str, arguments)],
        env={"HOME": str(home), "PATH": "/usr/bin:/bin", "PYTHONPATH": "/nowhere"},
        cwd=root.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_one_command_makes_an_environment_and_hands_over(tmp_path: Path) -> None:
    root = bundle(tmp_path / "b", OTHER, HERE)
    done = run(root)
    assert done.returncode == 75, done.stderr
    place = tmp_path / "home" / ".local" / "share" / "edgekit" / "runtime"
    assert f"runtime    {HERE.text} into {place}" in done.stdout
    assert "3 wheels hold what was listed" in done.stdout
    # The call that failed is printed whole, to be typed again.
    assert f"bundle check {root}" in done.stdout
    assert f"{place}/bin/edgekit bundle install {root}" in done.stderr
    assert not (place / "wheels").exists()
    again = run(root, "--in-place", "--trust", "k.pub")
    assert "nothing to do" in again.stdout
    for step in ("check", "install"):
        assert f"bundle {step} {root} --trust k.pub --in-place" in again.stdout


def test_an_environment_of_others_is_left_alone(tmp_path: Path) -> None:
    root = bundle(tmp_path / "b", HERE)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    done = run(root, "--venv", tmp_path / "mine")
    assert done.returncode == 73
    assert "holds something else" in done.stderr
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["file"]


@pytest.mark.parametrize("what", ["wheel", "manifest", "index.json"])
def test_a_changed_byte_is_found_before_anything_is_installed(what: str, tmp_path: Path) -> None:
    root = bundle(tmp_path / "b", HERE)
    manifest = Layout(root).blob(Layout(root).index()[0].digest)
    wheel = max((root / "blobs" / "sha256").iterdir(), key=lambda p: p.stat().st_size)
    file = {"wheel": wheel, "manifest": manifest}.get(what, root / what)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    done = run(root, "--venv", tmp_path / "venv")
    assert done.returncode == 65, done.stderr
    assert "does not hold what SHA256SUMS lists" in done.stderr
    assert not (tmp_path / "venv" / "bin").exists()


@pytest.mark.parametrize(
    ("target", "changes", "sentence"),
    [
        (OTHER, {}, f"this is {HERE.os} {HERE.arch}"),
        (HERE, {"python": "3.99"}, "run it with python3.99"),
        (HERE, {"glibc": "2.99"}, "glibc"),
        (HERE, {"backend": "cuda124"}, "no NVIDIA driver"),
    ],
)
def test_what_cannot_run_here_is_said_in_a_sentence(
    target: Target, changes: dict[str, Any], sentence: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    root = bundle(tmp_path / "b", target, **changes)
    monkeypatch.setattr(start, "__file__", str(root / START))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    if "backend" in changes and Path("/proc/driver/nvidia/version").exists():
        pytest.skip("this machine has the driver")
    assert start.main(["--venv", str(tmp_path / "venv")]) == 69
    said = capsys.readouterr().err
    assert sentence in said
    assert f"hint: ask for a folder made with --for and the words that fit this machine, "\
        f"such as {start.here()}" in said  # fmt: skip
    assert not (tmp_path / "venv").exists()


def test_a_full_disk_is_said_before_it_is_filled(tmp_path: Path) -> None:
    root = bundle(tmp_path / "b", HERE, unpacked_bytes=1 << 60)
    done = run(root, "--venv", tmp_path / "venv")
    assert done.returncode == 73
    assert "are needed" in done.stderr
    assert "--venv" in done.stderr


def test_an_old_python_is_refused_in_words() -> None:
    with pytest.raises(start.Stop, match=r"3\.11 or newer is needed, this is 3\.9"):
        start.check_python((3, 9))
    start.check_python((3, 11))
    # The file must parse where only the sentence can be printed.
    ast.parse(Path(start.__file__).read_text(), feature_version=(3, 8))


def test_it_imports_nothing_but_the_standard_library() -> None:
    tree = ast.parse(Path(start.__file__).read_text())
    names = {
        (node.names[0].name if isinstance(node, ast.Import) else node.module or "").split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert names <= set(sys.stdlib_module_names)


def test_the_page_names_the_models_and_the_command() -> None:
    texts = bootstrap_texts(["linux-x86_64-cp311-cpu"], ["pocket Q8_0"])
    page = texts[README].decode()
    assert "pocket Q8_0" in page
    assert f"python3 {START}" in page
    assert "{" not in page
    assert max(map(len, page.splitlines())) <= 100


def test_check_refuses_a_bundle_for_another_system_by_its_exit_code(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    root = bundle(tmp_path / "b", OTHER)
    cli.config.mkdir()
    (cli.config / "trust.toml").write_text('signature = "warn"\n')
    done = cli.run("bundle", "check", root, "--json")
    assert done.returncode == 69
    record = json.loads(done.stdout)
    assert record["schema"] == "edgekit.bundle-check/1"
    assert record["ok"] is False
    assert [problem["code"] for problem in record["problems"]] == ["wrong_system"]
    plain = cli.run("bundle", "check", root)
    assert plain.returncode == 69
    assert f"error: this bundle is for {OTHER.os} arm64" in plain.stderr
    assert "hint: make one with edgekit bundle create" in plain.stderr


def _namespace() -> bool:
    found = shutil.which("unshare")
    return found is not None and subprocess.run([found, "-rn", "true"], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not _namespace(), reason="no network namespaces here")
def test_the_real_wheelhouse_runs_with_loopback_only(tmp_path: Path) -> None:
    """Create here, set up in a namespace with an empty home and no environment of ours."""
    maker = Cli(tmp_path / "maker")
    maker.home.mkdir()
    maker.json("bundle", "keygen", "ops")
    begun = time.monotonic()
    made = maker.json(
        "bundle", "create", "pocket:Q8_0", "--for", "this", "--key", "ops.pem", "--output", "p"
    )
    packed = time.monotonic()
    root, home = maker.home / "p", tmp_path / "home"
    home.mkdir()
    # Root of a namespace counts as root: its folders would be the machine's own.
    places = {
        f"EDGEKIT_{name}": str(home / name)
        for name in ("DATA_DIR", "STORE", "CONFIG_DIR", "CACHE_DIR")
    }
    command = f"ip link set lo up; exec {sys.executable} {root / START} --no-deploy"
    done = subprocess.run(
        ["unshare", "-rn", "sh", "-c", f"{command} --trust {maker.home / 'ops.pub'}"],
        env={"HOME": str(home), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin", **places},
        capture_output=True,
        text=True,
        timeout=280,
    )
    print(f"{made['bytes'] / 1e6:.1f} MB in {made['files']} files, made in {packed - begun:.1f} s,")
    print(f"set up in {time.monotonic() - packed:.1f} s")
    assert "this machine can run it" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
    place = home / ".local" / "share" / "edgekit" / "runtime"
    assert list((home / "STORE" / "blobs").iterdir())
    # The compiler's own OpenMP library is not asked of the system.
    library = next(place.glob("lib/python*/site-packages/llama_cpp/lib/libggml-cpu.so"))
    linked = subprocess.run(["ldd", library], capture_output=True, text=True, check=True).stdout
    openmp = [line for line in linked.splitlines() if "omp.so" in line]
    assert all(str(place) in line for line in openmp), openmp
    sums = (root / "SHA256SUMS").read_text()
    assert hashlib.sha256((root / START).read_bytes()).hexdigest() in sums
