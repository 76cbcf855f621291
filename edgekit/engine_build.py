"""Build llama-cpp-python so that it neither crashes nor crawls on the machine at hand.

Standard library only: `make setup` runs this file before anything is installed. The choice of
compiler and flags is pure (`choose`) and comes with its reason; the wheel is kept under the user's
cache, one folder per version, compiler, flags and CPU, so a second set-up costs seconds.

Why not plain pip: GCC 12 miscompiles llama.cpp's AMX kernels (the stores to the tile configuration
are dropped) and the first quantized matmul dies with SIGSEGV. clang is right and 2-3 times as fast.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

REQUIREMENT = "llama-cpp-python"
NO_AMX = "-U__AMX_INT8__"
MIN_CLANG = 14
BUILD_REQUIREMENTS = ("scikit-build-core", "cmake", "ninja")
"""What a folder for building without a network must hold beside the sdist, as wheels; cmake and
ninja only where the system has none."""


@dataclass(frozen=True, slots=True)
class Toolchain:
    """What was found: `clangs` as (command, major version), newest first."""

    system: str
    cpu_flags: frozenset[str]
    gcc: str | None
    clangs: tuple[tuple[str, int], ...]
    nvcc: str | None
    nvidia_driver: bool
    cuda_archs: tuple[str, ...] = ()
    """Compute capabilities of the cards, "86"; empty: the driver does not say."""
    vulkan: bool = False
    """A GPU of another make, Vulkan's headers and its shader compiler are here."""


@dataclass(frozen=True, slots=True)
class Build:
    """Compiler and flags for one build, and why."""

    env: tuple[tuple[str, str], ...]
    reason: str


def choose(found: Toolchain) -> Build:
    """Pick compiler and flags.

    Raises SystemExit with a hint when there is no C++ compiler at all.
    """
    env: dict[str, str] = {}
    reasons: list[str] = []
    clang = next((name for name, major in found.clangs if major >= MIN_CLANG), None)
    if found.system == "Linux" and "amx_int8" in found.cpu_flags:
        if clang is not None:
            env |= {"CC": clang, "CXX": clang.replace("clang", "clang++")}
            reasons.append(f"{clang}: its AMX kernels are right and the fastest on this CPU")
        elif found.gcc is not None:
            env |= {"CFLAGS": NO_AMX, "CXXFLAGS": NO_AMX}
            reasons.append(
                "gcc without AMX, because gcc's AMX kernels crash; with clang installed the engine "
                "would be two to three times as fast"
            )
    elif found.gcc is None and clang is not None:
        env |= {"CC": clang, "CXX": clang.replace("clang", "clang++")}
        reasons.append(f"{clang}: the only compiler found")
    if found.gcc is None and clang is None and found.system != "Windows":
        raise SystemExit(
            "no C++ compiler found: install one (Debian: apt-get install clang libomp-dev; "
            "macOS: xcode-select --install) and run the command again"
        )
    if "avx512f" in found.cpu_flags and found.system == "Linux":
        reasons.append("AVX-512, as this CPU has it")
    if found.nvcc is not None and found.nvidia_driver:
        archs = ";".join(found.cuda_archs) or "native"
        env["CMAKE_ARGS"] = f"-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES={archs}"
        reasons.append(f"CUDA for architecture {archs}: driver and nvcc are here")
    elif found.nvidia_driver:
        reasons.append("no CUDA: a GPU is here, but nvcc is not; the GPU will stay idle")
    elif found.system == "Darwin":
        reasons.append("Metal, llama.cpp's default here")
    elif found.vulkan:
        env["CMAKE_ARGS"] = "-DGGML_VULKAN=on"
        reasons.append("Vulkan: a GPU, its headers and glslc are here")
    return Build(tuple(sorted(env.items())), "; ".join(reasons) or "defaults: nothing special here")


def look() -> Toolchain:
    """Find compilers, CPU flags and an NVIDIA driver on this machine."""
    flags: frozenset[str] = frozenset()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        line = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
        flags = frozenset(line.group(1).split()) if line else flags
    clangs = []
    for name in ["clang", *(f"clang-{n}" for n in range(30, MIN_CLANG - 1, -1))]:
        if shutil.which(name) and shutil.which(name.replace("clang", "clang++")):
            text = subprocess.run([name, "--version"], capture_output=True, text=True, check=False)
            version = re.search(r"clang version (\d+)", text.stdout)
            if version:
                clangs.append((name, int(version.group(1))))
    return Toolchain(
        system=platform.system(),
        cpu_flags=flags,
        gcc=shutil.which("g++"),
        clangs=tuple(sorted(clangs, key=lambda c: -c[1])),
        nvcc=shutil.which("nvcc"),
        nvidia_driver=Path("/proc/driver/nvidia/version").exists(),
        cuda_archs=_cuda_archs(),
        vulkan=_vulkan(),
    )


def _cuda_archs() -> tuple[str, ...]:
    """Ask the driver for the cards' compute capabilities: "8.6" is architecture 86."""
    if not shutil.which("nvidia-smi"):
        return ()
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return cuda_archs(done.stdout) if done.returncode == 0 else ()


def cuda_archs(text: str) -> tuple[str, ...]:
    """Read nvidia-smi's lines of compute capabilities, each once, in order."""
    found = re.findall(r"^\s*(\d+)\.(\d+)\s*$", text, re.MULTILINE)
    return tuple(sorted({major + minor for major, minor in found}, key=int))


def _vulkan() -> bool:
    headers = [Path(os.environ.get("VULKAN_SDK", "/usr")) / "include/vulkan/vulkan.h"]
    nodes = list(Path("/dev/dri").glob("renderD*")) if Path("/dev/dri").exists() else []
    return bool(nodes and shutil.which("glslc") and any(h.exists() for h in headers))


def pinned_version() -> str:
    """Return the version that pyproject.toml pins."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    for line in project["project"]["optional-dependencies"]["serve"]:
        if line.startswith(f"{REQUIREMENT}=="):
            return str(line.split("==")[1])
    raise SystemExit(f"pyproject.toml does not pin {REQUIREMENT}")


def wheel_folder(version: str, found: Toolchain, build: Build, sdist: Path | None = None) -> Path:
    """Return where the wheel of this very build is kept. An `sdist` file counts by its content."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    cpu = (platform.machine(), sorted(found.cpu_flags))
    what: tuple[object, ...] = (version, sys.version_info[:2], cpu, build.env)
    if sdist is not None and sdist.is_file():
        what = (*what, hashlib.sha256(sdist.read_bytes()).hexdigest())
    text = repr(what)
    return cache / "edgekit" / "wheels" / hashlib.sha256(text.encode()).hexdigest()[:16]


def wheel_command(version: str, target: Path, sdist: Path | None = None) -> list[str]:
    """Return pip's command line. `sdist`: a source archive, or a folder that holds it.

    A folder is all that pip may look at, so it must hold the build requirements as wheels too;
    with an archive they may also lie beside it.
    """
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-cache-dir"]
    command += ["--no-binary", REQUIREMENT, "--wheel-dir", str(target)]
    if sdist is None:
        return [*command, f"{REQUIREMENT}=={version}"]
    if sdist.is_dir():
        command += ["--no-index", "--find-links", str(sdist.resolve())]
        return [*command, f"{REQUIREMENT}=={version}"]
    return [*command, "--find-links", str(sdist.resolve().parent), str(sdist.resolve())]


def build_wheel(version: str, folder: Path, build: Build, sdist: Path | None = None) -> None:
    """Compile the wheel into `folder`; nothing is left there unless it is whole.

    Raises subprocess.CalledProcessError when pip fails; what it says goes to stderr.
    """
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    env = os.environ | dict(build.env)
    env.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
    # pip's own words go to stderr: the standard output of a command may be JSON.
    subprocess.run(wheel_command(version, partial, sdist), env=env, check=True, stdout=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    os.replace(partial, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="build llama-cpp-python for this machine")
    parser.add_argument("--python", default=sys.executable, help="interpreter to install into")
    parser.add_argument("--rebuild", action="store_true", help="compile even if a wheel is kept")
    parser.add_argument("--sdist", type=Path, help="source archive, or a folder of packages")
    args = parser.parse_args()
    found, version = look(), pinned_version()
    build = choose(found)
    folder = wheel_folder(version, found, build, args.sdist)
    say = sys.stderr.write
    if args.rebuild or not list(folder.glob("*.whl")):
        say(f"building {REQUIREMENT} {version} ({build.reason}); this takes some minutes\n")
        build_wheel(version, folder, build, args.sdist)
    else:
        say(f"using the {REQUIREMENT} {version} built earlier ({build.reason})\n")
    install = [args.python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall"]
    subprocess.run([*install, str(next(folder.glob("*.whl")))], check=True)


if __name__ == "__main__":
    main()
