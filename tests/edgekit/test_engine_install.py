"""Building, judging, installing and putting back the engine; pip is a stand-in, files are real."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit import engine_build, engine_install, engine_verify
from edgekit.engine_build import Toolchain
from edgekit.engine_verify import Compared, Speeds, decide
from edgekit.errors import (
    BadDataError,
    BusyError,
    ConfigError,
    EngineFailedError,
    MissingInputError,
)
from edgekit.machine import Canary
from tests.support.cli import Cli

GCC = Toolchain("Linux", frozenset({"avx2"}), "/usr/bin/g++", (), None, False)
WORKS, PLAIN_ONLY, DIES = (
    Canary(True, True, "decoded"),
    Canary(True, False, "SIGSEGV with extra buffers"),
    Canary(False, None, "died of SIGILL"),
)
FAST, SLOW, NOISY = Speeds(2000, 80, 1.0), Speeds(1000, 40, 2.0), Speeds(2100, 86, 0.93)
NAME = "llama-cpp-python"


def both(canary: Canary) -> dict[str, Canary]:
    return dict.fromkeys(engine_verify.FILETYPES, canary)


def pair(new: Speeds | None, old: Speeds | None) -> list[Compared]:
    return [Compared(name, new, old) for name in engine_verify.FILETYPES]


CASES: list[tuple[str, Canary, Canary | None, list[Compared], bool, str]] = [
    ("first engine", WORKS, None, pair(FAST, None), True, "none to compare it with"),
    ("faster", WORKS, WORKS, pair(FAST, SLOW), True, "Q4_0 2.00x"),
    ("slower", WORKS, WORKS, pair(SLOW, FAST), False, "slower than the installed one: Q4_0 0.50x"),
    ("as fast", WORKS, WORKS, pair(FAST, FAST), True, "1.00x"),
    ("noise", WORKS, WORKS, [Compared("a", FAST, SLOW), Compared("b", FAST, NOISY)], True, "0.93x"),
    ("dies", DIES, WORKS, pair(None, FAST), False, "the new build fails on Q4_0: died of SIGILL"),
    ("dies, and the old one too", DIES, DIES, [], False, "the new build fails"),
    ("crashes in AMX", PLAIN_ONLY, WORKS, pair(FAST, SLOW), False, "where the installed one does"),
    ("crashes as before", PLAIN_ONLY, PLAIN_ONLY, pair(FAST, SLOW), True, "2.00x"),
    ("mends a crash", WORKS, PLAIN_ONLY, pair(SLOW, FAST), True, "0.50x"),
    ("mends all", WORKS, DIES, pair(FAST, None), True, "the installed build fails on Q4_0"),
    ("first, but AMX crashes", PLAIN_ONLY, None, pair(SLOW, None), True, "none to compare"),
]


@pytest.mark.parametrize(
    ("new", "old", "compared", "install", "words"),
    [c[1:] for c in CASES],
    ids=[c[0] for c in CASES],
)
def test_what_is_installed(
    new: Canary, old: Canary | None, compared: list[Compared], install: bool, words: str
) -> None:
    before: Mapping[str, Canary] = {} if old is None else both(old)
    done, reason = decide(both(new), before, compared)
    assert done is install
    assert words in reason


def test_a_build_is_drafted_without_touching_anything(tmp_path: Path) -> None:
    plan = engine_install.draft(found=GCC)
    assert plan.version == engine_build.pinned_version()
    assert plan.build.reason
    with pytest.raises(MissingInputError):
        engine_install.draft(tmp_path / "gone.tar.gz", GCC)
    with pytest.raises(ConfigError, match="no C\\+\\+ compiler"):
        engine_install.draft(found=replace(GCC, gcc=None))


def test_the_wheel_of_another_sdist_is_another_wheel(tmp_path: Path) -> None:
    build = engine_build.choose(GCC)
    folders = {engine_build.wheel_folder("1", GCC, build)}
    for text in ("a", "b"):
        (tmp_path / text).write_text(text)
        folders.add(engine_build.wheel_folder("1", GCC, build, tmp_path / text))
    assert len(folders) == 3
    assert engine_build.wheel_folder("1", GCC, build, tmp_path) in folders


def test_pip_is_kept_off_the_network_when_a_folder_is_given(tmp_path: Path) -> None:
    archive = tmp_path / "llama_cpp_python-1.tar.gz"
    archive.touch()
    command = engine_build.wheel_command("1", tmp_path / "out", tmp_path)
    assert "--no-index" in command
    assert command[command.index("--find-links") + 1] == str(tmp_path)
    assert command[-1] == "llama-cpp-python==1"
    command = engine_build.wheel_command("1", tmp_path / "out", archive)
    assert command[-1] == str(archive)
    assert command[command.index("--find-links") + 1] == str(tmp_path)
    command = engine_build.wheel_command("1", tmp_path / "out")
    assert command[-1] == "llama-cpp-python==1"
    assert "--find-links" not in command


class Site:
    """A site-packages of our own with one distribution in it, and a pip that unpacks wheels."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[list[str]] = []
        self.broken = False

    def put(self, text: str) -> None:
        info = self.root / "llama_cpp_python-1.0.dist-info"
        package = self.root / "llama_cpp"
        info.mkdir(parents=True, exist_ok=True)
        package.mkdir(exist_ok=True)
        (package / "__init__.py").write_text(text)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n")
        tag = f"py3-none-{sys.platform}_any"
        (info / "WHEEL").write_text(f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        (info / "INSTALLER").write_text("pip\n")
        names = ["METADATA", "WHEEL", "INSTALLER", "RECORD"]
        lines = ["llama_cpp/__init__.py,,", "llama_cpp/__pycache__/__init__.cpython-311.pyc,,"]
        lines += [f"{info.name}/{name},," for name in names]
        (info / "RECORD").write_text("\n".join(lines) + "\n")

    def distribution(self) -> importlib.metadata.Distribution | None:
        return next(iter(importlib.metadata.distributions(name=NAME, path=[str(self.root)])), None)

    def text(self) -> str:
        return (self.root / "llama_cpp" / "__init__.py").read_text()

    def wheel(self, place: Path, text: str) -> Path:
        """Return a wheel of the same shape with other content."""
        other = Site(place / "site")
        other.put(text)
        distribution = other.distribution()
        assert distribution is not None
        return engine_install.repack(distribution, place)

    def pip(self, arguments: Sequence[str]) -> None:
        self.calls.append(list(arguments))
        if self.broken:
            self.broken = False
            raise EngineFailedError("pip ended with status 1", code="pip_failed")
        with zipfile.ZipFile(arguments[-1]) as archive:
            archive.extractall(self.root)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    made = Site(tmp_path / "installed")
    made.put("old")
    monkeypatch.setenv("EDGEKIT_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(engine_install, "_distribution", made.distribution)
    return made


def test_install_and_back_and_forth(site: Site, tmp_path: Path) -> None:
    wheel = site.wheel(tmp_path, "new")
    kept = engine_install.install(wheel, {"build": {"CC": "clang"}, "reason": "why"}, site.pip)
    assert site.text() == "new"
    assert kept == engine_install.previous_wheel()
    assert "--no-index" in site.calls[0]
    shown = engine_install.show()
    assert (shown["version"], shown["reason"], shown["previous"]) == ("1.0", "why", str(kept))
    for expected in ("old", "new", "old"):
        engine_install.rollback(site.pip)
        assert site.text() == expected
    record = json.loads((engine_install.folder() / "installed.json").read_text())
    assert "rollback" in record["reason"]


def test_a_pip_that_fails_leaves_the_old_engine(site: Site, tmp_path: Path) -> None:
    wheel = site.wheel(tmp_path, "new")
    site.broken = True
    with pytest.raises(EngineFailedError, match="pip ended"):
        engine_install.install(wheel, {}, site.pip)
    assert site.text() == "old"
    assert len(site.calls) == 2
    assert engine_install.show()["reason"] is None


def test_the_first_engine_has_nothing_to_go_back_to(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_install, "_distribution", lambda: None)
    wheel = site.wheel(tmp_path, "new")
    assert engine_install.install(wheel, {}, site.pip) is None
    with pytest.raises(MissingInputError) as caught:
        engine_install.rollback(site.pip)
    assert caught.value.code == "no_previous_engine"
    assert engine_install.show()["version"] is None


def test_only_one_at_a_time(site: Site, tmp_path: Path) -> None:
    wheel = site.wheel(tmp_path, "new")
    with engine_install.locked(), pytest.raises(BusyError):
        engine_install.install(wheel, {}, site.pip)
    assert site.text() == "old"


def test_a_repacked_wheel_is_one_that_pip_takes(site: Site, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    distribution = site.distribution()
    assert distribution is not None
    wheel = engine_install.repack(distribution, tmp_path / "out")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert archive.testzip() is None
        record = archive.read("llama_cpp_python-1.0.dist-info/RECORD").decode()
    assert "llama_cpp_python-1.0.dist-info/INSTALLER" not in names
    assert {line.split(",")[0] for line in record.splitlines()} == names
    assert [f.name for f in wheel.parent.iterdir()] == [wheel.name]
    # The tag of a platform that does not exist is refused; the rest of the wheel is not.
    wheel = wheel.rename(wheel.with_name("llama_cpp_python-1.0-py3-none-any.whl"))
    target = tmp_path / "target"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True)
    assert (target / "llama_cpp" / "__init__.py").read_text() == "old"


def test_an_engine_without_a_file_list_is_not_replaced(site: Site, tmp_path: Path) -> None:
    wheel = site.wheel(tmp_path, "new")
    next(site.root.glob("*.dist-info")).joinpath("RECORD").unlink()
    with pytest.raises(EngineFailedError) as caught:
        engine_install.install(wheel, {}, site.pip)
    assert caught.value.code == "cannot_keep_engine"
    assert site.text() == "old"
    assert engine_install.install(wheel, {}, site.pip, must_keep=False) is None
    assert site.text() == "new"


def test_the_kept_wheel_has_the_tags_of_the_installed_one() -> None:
    tags = engine_install._tags
    assert tags("Tag: py3-none-linux_x86_64\n") == "py3-none-linux_x86_64"
    two = "Tag: cp311-cp311-manylinux_2_17_x86_64\nTag: cp311-cp311-manylinux2014_x86_64\n"
    assert tags(two) == "cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64"
    assert tags("") == "py3-none-any"


def test_no_wheel_is_bad_data(tmp_path: Path) -> None:
    (tmp_path / "x.whl").write_text("no archive")
    with pytest.raises(BadDataError), engine_verify.unpacked(tmp_path / "x.whl"):
        pass


def test_the_installed_engine_beside_itself(tmp_path: Path) -> None:
    """The canary and the trial run in children that find the library in a folder of its own."""
    pytest.importorskip("llama_cpp")
    import llama_cpp

    library = tmp_path / "library"
    library.mkdir()
    (library / "llama_cpp").symlink_to(Path(llama_cpp.__file__).parent)
    with engine_verify.pocket_files(None) as files:
        q4 = {"Q4_0": files["Q4_0"]}
        found = engine_verify.verify(library, q4, installed=True)
    assert found.canaries["Q4_0"].ok
    (compared,) = found.compared
    assert compared.gain is not None
    assert "new build" in found.reason


def test_a_broken_library_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "llama_cpp").mkdir()
    (tmp_path / "llama_cpp" / "__init__.py").write_text("import os; os.kill(os.getpid(), 11)")
    with engine_verify.pocket_files(None) as files:
        found = engine_verify.verify(tmp_path, {"Q4_0": files["Q4_0"]}, installed=False)
    assert not found.install
    assert "SIGSEGV" in found.reason
    assert engine_verify.refused(found).exit_code == 70


def test_the_command_line(tmp_path: Path) -> None:
    cli = Cli(tmp_path, {"XDG_CACHE_HOME": str(tmp_path / "xdg")})
    shown = cli.json("engine")
    assert shown["schema"] == "edgekit.engine/1"
    assert shown["version"] == importlib.metadata.version(NAME)
    drafted = cli.json("engine", "build", "--dry-run")
    assert (drafted["action"], drafted["installed"], drafted["made_earlier"]) == (
        "build",
        False,
        False,
    )
    assert drafted["reason"]
    text = cli.run("engine", "build", "--dry-run").stdout
    assert "Flags" in text
    assert "some minutes to compile" in text
    for arguments, code in (
        (("engine", "mend"), 2),
        (("engine", "build", "--sdist", "gone.tar.gz"), 66),
        (("engine", "build", "--model", "gone.gguf"), 66),
        (("engine", "rollback"), 66),
    ):
        done = cli.run(*arguments)
        assert done.returncode == code, done.stderr
        assert "hint: " in done.stderr
    assert cli.json("engine", "rollback", "--dry-run")["wheel"] is None
    assert not (tmp_path / "data").exists() or not list((tmp_path / "data").rglob("*.whl"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_real_build_is_sound_and_not_slower(tmp_path: Path) -> None:
    plan = engine_install.draft()
    plan = replace(plan, folder=tmp_path / "wheel")
    wheel = engine_install.make_wheel(plan)
    found = engine_install.check(wheel)
    assert all(canary.use_extra_bufts for canary in found.canaries.values()), found.canaries
    assert all(row.new is not None for row in found.compared)
