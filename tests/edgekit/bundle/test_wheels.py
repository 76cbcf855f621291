"""Wheelhouses: made of what is installed, or by the real pip from a folder."""

from __future__ import annotations

import re
import shutil
import subprocess
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.bundle import wheels as wheelhouses
from edgekit.bundle.closure import Package, follow, package_of
from edgekit.bundle.elf import needs_of
from edgekit.bundle.layout import Layout
from edgekit.bundle.repack import edgekit_wheel, repack
from edgekit.bundle.runtime import parse_flags, requirements_of, runtimes_of, tagged_glibc
from edgekit.bundle.target import Target, misfit, parse_target, this_target
from edgekit.bundle.wheels import add_runtime, check_wheels, wheelhouse
from edgekit.errors import BadDataError, MissingInputError
from tests.support.wheel_files import make_wheel

LINUX = Target("linux", "x86_64", 11, "cpu", (2, 28))
MAC = Target("macos", "arm64", 12, "metal")


@pytest.mark.parametrize("name", ["typer", "PyYAML", "tqdm"])
def test_an_installed_package_becomes_the_same_wheel_twice(name: str, tmp_path: Path) -> None:
    made = [repack(distribution(name), _folder(tmp_path / str(i))) for i in range(2)]
    assert made[0].name == made[1].name
    assert made[0].read_bytes() == made[1].read_bytes()
    assert misfit(made[0].name, this_target()) is None
    package = package_of(made[0])
    assert package.version == distribution(name).version
    with zipfile.ZipFile(made[0]) as archive:
        names = archive.namelist()
        record = next(n for n in names if n.endswith(".dist-info/RECORD"))
        listed = {line.split(",")[0] for line in archive.read(record).decode().splitlines()}
    assert listed == set(names)
    assert not [n for n in names if n.endswith((".pyc", "direct_url.json", "INSTALLER"))]


@pytest.fixture
def installed(tmp_path: Path) -> Distribution:
    """A package as pip leaves it."""
    wheel = make_wheel(tmp_path, "small-thing", files={"small_thing/__init__.py": b"x = 1\n"})
    place = tmp_path / "site"
    command = ["pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(place)]
    subprocess.run([_python(), "-m", *command, str(wheel)], check=True)
    return Distribution.at(next(place.glob("*.dist-info")))


def test_an_edited_package_is_refused_by_name(installed: Distribution, tmp_path: Path) -> None:
    repack(installed, _folder(tmp_path / "a"))
    code = Path(str(installed.locate_file("small_thing/__init__.py")))
    code.write_text("x = 2\n")
    with pytest.raises(BadDataError, match=r"__init__\.py is not as it was") as refused:
        repack(installed, tmp_path / "a")
    assert "--force-reinstall" in (refused.value.hint or "")
    code.unlink()
    with pytest.raises(BadDataError, match="is gone"):
        repack(installed, tmp_path / "a")


@pytest.mark.slow
def test_edgekit_packs_itself_reproducibly(tmp_path: Path) -> None:
    made = [edgekit_wheel(_folder(tmp_path / str(i))) for i in range(2)]
    names = [_contents(wheel) for wheel in made]
    # Others may be writing the tree while this runs; what did not change must be the same.
    same = {name for name in names[0] if names[0][name] == names[1].get(name)}
    assert len(same) > 0.95 * len(names[0])
    if names[0] == names[1]:
        assert made[0].read_bytes() == made[1].read_bytes()
    assert "edgekit/bundle/start.py" in same
    assert not [n for n in names[0] if n.startswith("tests/") or n.endswith(".pyc")]
    assert package_of(made[0]).name == "edgekit"


def packages(*listed: Package) -> dict[str, Package]:
    return {one.name: one for one in listed}


def test_requirements_are_followed_for_the_target_not_for_us() -> None:
    held = packages(
        Package("pip", "25.0", ()),
        Package(
            "edgekit",
            "1",
            (
                "a>=1",
                'b; extra == "serve"',
                'hub; extra == "hub"',
                'colour; sys_platform == "win32"',
                'applekit; sys_platform == "darwin" and platform_machine == "arm64"',
                'old; python_version < "3.12"',
            ),
        ),
        Package("a", "1.5", ("c[fast]",)),
        Package("b", "1", ("c",)),
        Package("c", "1", ('d; extra == "fast"', 'e; extra == "slow"')),
    )
    assert follow(held, LINUX) == (["a", "b", "c", "edgekit", "pip"], ["d", "old"])
    assert follow(held, MAC) == (["a", "b", "c", "edgekit", "pip"], ["applekit", "d"])
    windows = parse_target("windows-x86_64-cp313-cpu")
    assert follow(held, windows)[1] == ["colour", "d"]


def test_packages_that_cannot_live_together_are_refused() -> None:
    pip = Package("pip", "25.0", ())
    held = packages(pip, Package("edgekit", "1", ("a>=2",)), Package("a", "1.5", ()))
    with pytest.raises(BadDataError, match=r"edgekit needs a>=2, 1\.5 is there"):
        follow(held, LINUX)
    held = packages(pip, Package("edgekit", "1", ("a",)), Package("a", "1", (), ">=3.12"))
    with pytest.raises(BadDataError, match=r"a needs Python >=3\.12"):
        follow(held, LINUX)
    assert follow(held, MAC)[1] == []


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small edgekit and no index; a folder of wheels to be filled."""
    requires = ['llama-cpp-python==1.0; extra == "serve"', "helper>=2", 'gone; os_name == "nt"']
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setattr(
        wheelhouses, "edgekit_wheel", lambda place: make_wheel(place, "edgekit", requires=requires)
    )
    folder = _folder(tmp_path / "named")
    make_wheel(folder, "pip", "25.0")
    make_wheel(folder, "helper", "1.0")
    make_wheel(folder, "helper", "2.0", requires=["deep"])
    for tag in ("cp312-cp312-macosx_11_0_arm64", "cp311-cp311-manylinux_2_28_x86_64"):
        make_wheel(folder, "deep", tag=tag)
    return folder


def test_pip_fills_a_foreign_wheelhouse_from_the_named_folder(own: Path) -> None:
    for tag in ("py3-none-macosx_11_0_arm64", "py3-none-linux_x86_64"):
        make_wheel(own, "llama-cpp-python", tag=tag)
    with wheelhouse(MAC, [str(own)]) as found:
        assert [wheel.name for wheel in found] == [
            "deep-1.0-cp312-cp312-macosx_11_0_arm64.whl",
            "edgekit-1.0-py3-none-any.whl",
            "helper-2.0-py3-none-any.whl",
            "llama_cpp_python-1.0-py3-none-macosx_11_0_arm64.whl",
            "pip-25.0-py3-none-any.whl",
        ]


def test_an_engine_that_nobody_has_says_what_to_pass(own: Path) -> None:
    make_wheel(own, "llama-cpp-python", tag="py3-none-win_amd64")
    with pytest.raises(MissingInputError) as refused, wheelhouse(LINUX, [str(own)]):
        pass
    assert refused.value.code == "no_engine_wheel"
    assert "llama-cpp-python==1.0 for linux-x86_64-cp311-cpu" in refused.value.message
    assert "--wheels" in (refused.value.hint or "")


def test_an_engine_for_another_backend_is_refused(own: Path) -> None:
    make_wheel(own, "llama-cpp-python", tag="py3-none-linux_x86_64")
    cuda = parse_target("linux-x86_64-cp311-cuda124")
    with pytest.raises(BadDataError, match="has no cuda124 in it"), wheelhouse(cuda, [str(own)]):
        pass


def test_a_package_that_nobody_has_is_named(own: Path) -> None:
    make_wheel(own, "llama-cpp-python", tag="py3-none-linux_x86_64")
    (own / "deep-1.0-cp311-cp311-manylinux_2_28_x86_64.whl").unlink()
    with pytest.raises(MissingInputError, match="deep") as refused, wheelhouse(LINUX, [str(own)]):
        pass
    assert refused.value.code == "no_wheel"


def test_a_wheel_of_another_system_never_gets_in() -> None:
    with pytest.raises(BadDataError, match="is for win_amd64") as refused:
        check_wheels(["a-1-py3-none-any.whl", "b-1-cp311-cp311-win_amd64.whl"], LINUX)
    assert refused.value.code == "wrong_wheel"


def test_a_runtime_lies_in_the_layout_and_says_what_it_needs(tmp_path: Path) -> None:
    made = [
        make_wheel(tmp_path, "b", tag="cp311-cp311-manylinux_2_17_x86_64.manylinux_2_26_x86_64"),
        make_wheel(tmp_path, "a"),
    ]
    layout = Layout(_folder(tmp_path / "bundle"))
    layout.start()
    needs = requirements_of(LINUX, made)
    assert (needs.glibc, needs.python, needs.libraries) == ("2.17", "3.11", ())
    entry = add_runtime(layout, made, LINUX, needs)
    assert entry.platform == {"os": "linux", "architecture": "amd64"}
    layout.write_index([entry])
    assert runtimes_of(layout) == [needs]
    manifest = layout.manifest(layout.index()[0])
    assert [layer.annotations["org.cncf.model.filepath"][0] for layer in manifest.layers] == [
        "a",
        "b",
    ]
    again = Layout(_folder(tmp_path / "again"))
    again.start()
    assert add_runtime(again, made[::-1], LINUX, needs).digest == entry.digest
    layout.write_index([add_runtime(layout, made[:1], LINUX, needs)])
    with pytest.raises(BadDataError, match="lists other wheels"):
        runtimes_of(layout)


@pytest.mark.parametrize(
    ("name", "glibc"),
    [
        ("a-1-py3-none-any.whl", None),
        ("a-1-py3-none-linux_x86_64.whl", None),
        ("a-1-cp311-cp311-manylinux2014_x86_64.whl", (2, 17)),
        ("a-1-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", (2, 17)),
        ("a-1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl", (2, 27)),
        ("a-1-cp311-cp311-manylinux1_i686.manylinux_2_5_x86_64.whl", (2, 5)),
    ],
)
def test_the_oldest_glibc_is_in_the_name(name: str, glibc: tuple[int, int] | None) -> None:
    assert tagged_glibc(name) == glibc


def test_the_engine_says_what_it_was_compiled_for() -> None:
    line = "CPU : SSE3 = 1 | AVX2 = 1 | AVX512 = 0 | F16C = 1 | LLAMAFILE = 1 | REPACK = 1 | "
    assert parse_flags(line) == ("avx2", "f16c", "pni")
    assert parse_flags("Metal : EMBED_LIBRARY = 1") is None


def _libraries() -> list[Path]:
    found = [Path(str(f.locate())) for f in distribution("llama-cpp-python").files or []]
    return sorted({p for p in found if re.search(r"llama_cpp/lib/[^/]*\.so$", p.as_posix())})


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is the oracle")
@pytest.mark.skipif(not _libraries(), reason="no library of Linux to read")
def test_elf_needs_are_what_readelf_prints() -> None:
    for library in _libraries():
        text = subprocess.run(
            ["readelf", "-dVW", library], capture_output=True, text=True, check=True
        ).stdout
        needs = needs_of(library.read_bytes())
        assert needs is not None
        assert list(needs.libraries) == re.findall(r"\(NEEDED\)\s+Shared library: \[(.+)\]", text)
        assert [needs.soname] == re.findall(r"\(SONAME\)\s+Library soname: \[(.+)\]", text)
        used = {(int(a), int(b)) for a, b in re.findall(r"Name: GLIBC_(\d+)\.(\d+)", text)}
        assert needs.glibc == max(used)


@pytest.mark.skipif(not _libraries(), reason="no library of Linux to read")
def test_libraries_beside_the_packages_ask_nothing(tmp_path: Path) -> None:
    """llama-cpp-python leaves a second copy, and tools with TLS, that nobody loads."""
    one = _libraries()[0].read_bytes()
    needs = needs_of(one)
    assert needs is not None
    tag = "py3-none-linux_x86_64"
    idle = make_wheel(tmp_path, "idle", tag=tag, files={"lib/libx.so": one, "bin/x.so": one})
    used = make_wheel(tmp_path, "used", tag=tag, files={"used/libx.so": one})
    assert requirements_of(LINUX, [idle]).libraries == ()
    assert requirements_of(LINUX, [idle]).glibc is None
    found = requirements_of(LINUX, [used])
    assert set(found.libraries) <= set(needs.libraries)
    assert "libc.so.6" not in found.libraries
    assert found.glibc == ".".join(map(str, needs.glibc or ()))


@given(st.binary(max_size=200), st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_a_damaged_library_is_no_crash(data: bytes, at: int, patch: bytes) -> None:
    head = b"\x7fELF\x02\x01" + data
    needs_of(data)
    needs_of(head[:at] + patch + head[at:])


def _contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def _python() -> str:
    import sys

    return sys.executable
