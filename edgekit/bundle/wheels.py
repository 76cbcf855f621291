"""A wheelhouse for a target, and its manifest in a bundle.

For this machine the wheels are made of what is installed, engine included; for others pip
downloads them, and the engine comes from the index or folder that the user names: PyPI has none.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from edgekit.bundle.closure import Package, follow, package_of, parse_metadata
from edgekit.bundle.layout import FILE_PATH, REF_NAME, Descriptor, Layout
from edgekit.bundle.repack import edgekit_wheel, repack
from edgekit.bundle.requirements import Requirements
from edgekit.bundle.target import Target, misfit, this_target
from edgekit.errors import BadDataError, MissingInputError

RUNTIME: Final = "application/vnd.edgekit.runtime.v1+json"
WHEEL: Final = "application/vnd.edgekit.wheel.v1"
CONFIG: Final = "application/vnd.edgekit.requirements.v1+json"
TITLE: Final = "org.opencontainers.image.title"
ENGINE: Final = "llama-cpp-python"
_MIB: Final = 1 << 20
_ROUNDS: Final = 8


@contextmanager
def wheelhouse(target: Target, sources: Sequence[str] = ()) -> Iterator[list[Path]]:
    """Give the wheels of a target in a temporary folder, by name.

    `sources`: folders of wheels and addresses of indexes besides pip's own. With none, and a
    target that is this machine, nothing is downloaded. Raises EdgekitError: a wheel is missing
    (`no_wheel`, `no_engine_wheel`), does not fit (`wrong_wheel`), or is damaged.
    """
    with TemporaryDirectory(prefix="edgekit-wheels-") as place:
        folder = Path(place)
        if sources or target != this_target():
            _download(target, sources, folder)
        else:
            _installed(target, folder)
        wheels = sorted(folder.glob("*.whl"))
        check_wheels([wheel.name for wheel in wheels], target)
        yield wheels


def check_wheels(names: Sequence[str], target: Target) -> None:
    """Raise BadDataError (`wrong_wheel`) for one that the target cannot use."""
    for name in names:
        if why := misfit(name, target):
            raise BadDataError(
                f"{name} {why}",
                code="wrong_wheel",
                hint=f"make the bundle again with --for {target.text} and wheels for it",
            )


def add_runtime(
    layout: Layout, wheels: Sequence[Path], target: Target, needs: Requirements
) -> Descriptor:
    """Write the wheels and their requirements; return the entry for the index."""
    layers = [
        layout.add(_chunks(wheel), WHEEL, {FILE_PATH: wheel.name, TITLE: wheel.name})
        for wheel in sorted(wheels)
    ]
    config = layout.add_json(needs.as_dict(), CONFIG)
    notes = {REF_NAME: f"runtime-{target.text}", "org.edgekit.target": target.text}
    return layout.add_manifest(RUNTIME, config, layers, notes, target.oci_platform)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_MIB):
            yield chunk


def _installed(target: Target, folder: Path) -> None:
    # A source tree may ask for more than when it was installed: its new wheel says so.
    own = package_of(edgekit_wheel(folder))
    packages: dict[str, Package] = {own.name: own}
    for found in distributions():
        if text := found.read_text("METADATA"):
            package = parse_metadata(text)
            packages.setdefault(package.name, package)
    names, missing = follow(packages, target)
    if missing:
        raise MissingInputError(
            f"{', '.join(missing)} not installed here, so there is no wheel to make of it",
            code="no_wheel",
            hint="pip install pip 'edgekit[all]', or name a folder or an index with --wheels",
        )
    for name in names:
        if name == own.name:
            continue
        if name == ENGINE:
            repack(distribution(name), folder, _openmp())
        else:
            repack(distribution(name), folder)


def _openmp() -> dict[str, bytes]:
    """Return the OpenMP library that the engine was built with, to lie beside it.

    Only machines with that compiler have it (clang's libomp.so.5); the engine looks in its own
    folder first.
    """
    from edgekit.bundle.elf import needs_of

    found: dict[str, bytes] = {}
    try:
        files = distribution(ENGINE).files or []
    except PackageNotFoundError:
        return {}
    own = [Path(str(f.locate())) for f in files if f.name.startswith("libggml") and ".so" in f.name]
    for library in (path for path in own if path.parent.parent.name == "llama_cpp"):
        needs = needs_of(library.read_bytes())
        for name in needs.libraries if needs else ():
            place = _system_library(name) if name.startswith(("libomp", "libgomp")) else None
            if place is not None:
                found[f"llama_cpp/lib/{name}"] = place.read_bytes()
    return found


def _system_library(name: str) -> Path | None:
    """Find a shared library by its soname, as the loader's cache lists it."""
    for tool in ("ldconfig", "/sbin/ldconfig"):
        try:
            done = subprocess.run([tool, "-p"], capture_output=True, text=True, check=False)
        except OSError:
            continue
        for line in done.stdout.splitlines():
            listed, arrow, path = line.strip().partition(" => ")
            if arrow and listed.split(" ")[0] == name and "64" in listed:
                return Path(path)
    return None


def _download(target: Target, sources: Sequence[str], folder: Path) -> None:
    own = package_of(edgekit_wheel(folder))
    where: list[str] = []
    for source in sources:
        is_index = source.startswith(("https://", "http://", "file://"))
        where += ["--extra-index-url" if is_index else "--find-links", source]
    pinned = next(line for line in own.requires if line.startswith(f"{ENGINE}=="))
    _pip(target, [pinned.partition(";")[0].strip()], where, folder, engine=True)
    _check_backend(next(folder.glob("llama_cpp_python-*.whl")), target)
    for _ in range(_ROUNDS):
        packages = {p.name: p for p in map(package_of, folder.glob("*.whl"))}
        names, missing = follow(packages, target)
        if not missing:
            break
        _pip(target, missing, where, folder)
    else:
        raise _no_wheel(target, ", ".join(missing), "")
    # What is only wanted on the machine that asked stays behind.
    for wheel in folder.glob("*.whl"):
        if package_of(wheel).name not in names:
            wheel.unlink()


def _pip(
    target: Target,
    wanted: Sequence[str],
    where: Sequence[str],
    folder: Path,
    *,
    engine: bool = False,
) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), "--implementation", "cp"]
    command += ["--python-version", f"3.{target.python}"]
    for abi in (f"cp3{target.python}", "abi3", "none"):
        command += ["--abi", abi]
    for tag in [*target.platforms, "any"]:
        command += ["--platform", tag]
    done = subprocess.run([*command, *where, *wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        if engine:
            raise MissingInputError(
                f"no wheel of {wanted[0]} for {target.text} was found",
                code="no_engine_wheel",
                hint=f"pass --wheels with a folder or index that has it ({_example(target)}), or "
                "build it on such a machine with edgekit engine build",
            )
        raise _no_wheel(target, ", ".join(wanted), said[-1] if said else "")


def _example(target: Target) -> str:
    kind = target.backend if target.backend in ("cpu", "metal") or target.cuda else "cpu"
    return f"such as https://abetlen.github.io/llama-cpp-python/whl/{kind}"


def _no_wheel(target: Target, what: str, said: str) -> MissingInputError:
    return MissingInputError(
        f"no wheel for {target.text} was found: {what}{': ' if said else ''}{said[:200]}",
        code="no_wheel",
        hint="pass --wheels with a folder or index that has it",
    )


def _check_backend(wheel: Path, target: Target) -> None:
    """Refuse an engine for another backend: an index of CPU wheels uses the same file names."""
    import zipfile

    kind = {"rocm": "hip"}.get(target.backend, "cuda" if target.cuda else target.backend)
    with zipfile.ZipFile(wheel) as archive:
        there = any(f"ggml-{kind}" in name and "/lib" in name for name in archive.namelist())
    if kind not in ("cpu", "metal") and not there:
        raise BadDataError(
            f"{wheel.name} has no {target.backend} in it",
            code="wrong_wheel",
            hint=f"pass --wheels with a folder or index for it ({_example(target)})",
        )
