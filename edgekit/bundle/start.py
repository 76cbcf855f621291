"""Set up edgekit from this folder, with nothing but Python: no network, no compiler, no pip.

    python3 bootstrap/start.py

Checks that the wheels hold the bytes that SHA256SUMS lists and fit this machine, installs them
into an environment of their own, and hands over to edgekit, which proves the signature, checks
the machine, installs the models and serves them. Run again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

RUNTIME = "application/vnd.edgekit.runtime.v1+json"
MODEL = "application/vnd.cncf.model.manifest.v1+json"
MARK = "edgekit-runtime.json"
SPARE_BYTES = 64 << 20


class Stop(Exception):  # noqa: N818
    """A sentence, what to do, and an exit code of sysexits.h."""

    def __init__(self, sentence: str, hint: str, code: int) -> None:
        super().__init__(sentence)
        self.hint = hint
        self.code = code


def main(arguments: list[str] | None = None) -> int:
    """Run. Returns an exit code."""
    parser = argparse.ArgumentParser(description="set up edgekit from this folder")
    parser.add_argument("--venv", type=Path, help="folder for edgekit's own packages")
    parser.add_argument("--target", help="which runtime of the folder; default: what fits")
    parser.add_argument("--trust", type=Path, help="public key of the folder's maker (.pub)")
    parser.add_argument("--in-place", action="store_true", help="serve from this medium")
    parser.add_argument("--no-deploy", action="store_true", help="stop when all is installed")
    parser.add_argument("--port", type=int)
    given = parser.parse_args(arguments)
    root = Path(__file__).resolve().parent.parent
    try:
        check_python(sys.version_info[:2])
        sums = read_sums(root)
        runtime = choose(root, sums, given.target)
        place = given.venv or default_place()
        say("runtime", f"{runtime['target']} into {place}")
        python = install(root, sums, runtime, place)
        return hand_over(root, sums, python, given)
    except Stop as stop:
        sys.stderr.write(f"error: {stop}\nhint: {stop.hint}\n")
        return stop.code
    except OSError as error:
        sys.stderr.write(
            f"error: {error}\nhint: check the disk and the medium, then run it again\n"
        )
        return 73 if error.errno in (28, 122) else 74
    except KeyboardInterrupt:
        return 130


def say(what: str, text: str) -> None:
    sys.stdout.write(f"  {what:<10} {text}\n")
    sys.stdout.flush()


def check_python(version: tuple[int, int]) -> None:
    """Refuse a Python that edgekit does not run on."""
    if version < (3, 11):
        raise Stop(
            f"Python 3.11 or newer is needed, this is {version[0]}.{version[1]}",
            "run this file with a newer one, such as python3.11",
            69,
        )


def default_place() -> Path:
    """Where this user's environment goes when none is named."""
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return Path(data) / "edgekit" / "runtime"


def read_sums(root: Path) -> dict[str, str]:
    """Return the digests that the folder claims, by path."""
    try:
        lines = (root / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise Stop(f"{root} has no SHA256SUMS", "copy the whole folder again", 66) from None
    found = [re.fullmatch(r"([0-9a-f]{64})  (.+)", line) for line in lines]
    return {match[2]: match[1] for match in found if match}


def read(root: Path, sums: dict[str, str], name: str) -> bytes:
    """Read a small file and compare it with its digest."""
    data = (root / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != sums.get(name):
        raise _damaged(name)
    return data


def choose(root: Path, sums: dict[str, str], wanted: str | None) -> dict:  # type: ignore[type-arg]
    """Return the requirements of the runtime that fits, or say why none does."""
    reasons = []
    fitting = []
    for entry in json.loads(read(root, sums, "index.json"))["manifests"]:
        if entry.get("artifactType") != RUNTIME:
            continue
        manifest = json.loads(read(root, sums, _blob(entry["digest"])))
        needs = json.loads(read(root, sums, _blob(manifest["config"]["digest"])))
        if wanted is not None and needs["target"] != wanted:
            reasons.append(f"{needs['target']} is not {wanted}")
            continue
        why = misfit(needs)
        if why is None:
            fitting.append(needs)
        else:
            reasons.append(f"{needs['target']}: {why}")
    if not fitting:
        raise Stop(
            "nothing in this folder runs here: " + ("; ".join(reasons) or "it has no runtime"),
            "ask for a folder made with --for and the words that fit this machine, such as "
            f"{here()}",
            69,
        )
    return min(fitting, key=lambda needs: (needs["backend"] == "cpu", needs["target"]))


def here() -> str:
    """This machine in the words of a target, without a GPU."""
    systems = {"Linux": "linux", "Darwin": "macos", "Windows": "windows"}
    system = systems.get(platform.system(), platform.system().lower())
    version = f"{sys.version_info[0]}{sys.version_info[1]}"
    backend = "metal" if system == "macos" else "cpu"
    return f"{system}-{_arch()}-cp{version}-{backend}"


def misfit(needs: dict) -> str | None:  # type: ignore[type-arg]
    """Say why a runtime cannot be installed here. What edgekit itself can judge, it judges."""
    system, arch, _, _ = here().split("-")
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if (needs["os"], needs["arch"]) != (system, arch):
        return f"this is {system} {arch}"
    if needs["python"] != python:
        return f"this is Python {python}; run it with python{needs['python']}"
    name, libc = platform.libc_ver()
    if needs["glibc"] is not None:
        if name != "glibc":
            return "this system has no glibc"
        if _numbers(libc) < _numbers(needs["glibc"]):
            return f"it needs glibc {needs['glibc']}, this is {libc}"
    driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")
    if needs["backend"].startswith("cuda") and system == "linux" and not driver:
        return "no NVIDIA driver is installed"
    return None


def install(root: Path, sums: dict[str, str], needs: dict, place: Path) -> Path:  # type: ignore[type-arg]
    """Make the environment, unless it is there. Return its Python."""
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    mark = place / MARK
    want = json.dumps(needs["wheels"], sort_keys=True)
    if mark.is_file() and mark.read_text(encoding="utf-8") == want and python.exists():
        say("installed", "nothing to do")
        return python
    if place.exists() and any(place.iterdir()) and not mark.is_file():
        raise Stop(f"{place} holds something else", "name a new folder with --venv", 73)
    if not all(_blob(f"sha256:{digest}") in sums for digest in needs["wheels"].values()):
        raise Stop(
            f"this folder carries only what is new, and {place} does not hold what it builds on",
            "run the older folder's first, or ask for one that was made without --since",
            66,
        )
    place.mkdir(parents=True, exist_ok=True)
    check_room(place, needs, sum((root / _blob(f"sha256:{d}")).stat().st_size
                                 for d in needs["wheels"].values()))  # fmt: skip
    # An empty mark says that the folder is ours, and not finished.
    mark.write_text("", encoding="utf-8")
    wheels = place / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    wheels.mkdir()
    lines = [copy(root, sums, name, digest, wheels) for name, digest in needs["wheels"].items()]
    listed = wheels / "requirements.txt"
    listed.write_text("\n".join(lines) + "\n", encoding="utf-8")
    say("verified", f"{len(lines)} wheels hold what was listed")
    venv.EnvBuilder(clear=False, with_pip=False, symlinks=os.name != "nt").create(place)
    pip = next(wheels.glob("pip-*.whl"))
    command = [str(python), "-I", "-c", _RUN_PIP, str(pip), "install", "--no-index", "--no-deps"]
    command += ["--require-hashes", "--find-links", str(wheels), "--no-cache-dir", "--quiet"]
    command += ["--force-reinstall", "--no-input", "--disable-pip-version-check"]
    done = subprocess.run([*command, "-r", str(listed)], env=clean(), check=False)
    if done.returncode:
        raise Stop("pip could not install the wheels", "its words stand above", 70)
    shutil.rmtree(wheels)
    mark.write_text(want, encoding="utf-8")
    say("installed", f"{len(lines)} packages")
    return python


_RUN_PIP = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from pip._internal.cli.main import main; "
    "sys.exit(main(sys.argv[1:]))"
)
"""pip from its own wheel: many systems have Python without it."""


def check_room(place: Path, needs: dict, packed: int) -> None:  # type: ignore[type-arg]
    """Refuse a disk that cannot take the packages and, for a while, their wheels."""
    wanted = needs["unpacked_bytes"] * 21 // 20 + packed + SPARE_BYTES
    free = shutil.disk_usage(place).free
    if free < wanted:
        raise Stop(
            f"{place} has {free / 1e6:,.0f} MB free, {wanted / 1e6:,.0f} MB are needed",
            "free some space, or name a folder on another disk with --venv",
            73,
        )


def copy(root: Path, sums: dict[str, str], name: str, digest: str, wheels: Path) -> str:
    """Copy a wheel under its name, hashing it; return its line for pip."""
    blob = _blob(f"sha256:{digest}")
    if not re.fullmatch(r"[\w.+!-]+\.whl", name) or sums.get(blob) != digest:
        raise _damaged(name)
    sha = hashlib.sha256()
    with (root / blob).open("rb") as source, (wheels / name).open("wb") as file:
        while chunk := source.read(1 << 20):
            sha.update(chunk)
            file.write(chunk)
    if sha.hexdigest() != digest:
        raise _damaged(blob)
    package, version = name.split("-")[:2]
    return f"{package}=={version} --hash=sha256:{digest}"


def hand_over(root: Path, sums: dict[str, str], python: Path, given: argparse.Namespace) -> int:
    """Let edgekit prove, check, install and serve; stop with the next command when it cannot."""
    edgekit = [str(python), "-I", "-m", "edgekit"]
    trust = ["--trust", str(given.trust)] if given.trust else []
    placing = ["--in-place"] if given.in_place else []
    steps = [
        ["bundle", "check", str(root), *trust, *placing],
        ["bundle", "install", str(root), *trust, *placing],
    ]
    for step in steps:
        sys.stdout.flush()
        code = subprocess.run([*edgekit, *step], env=clean(), check=False).returncode
        if code:
            again = " ".join([str(python.parent / "edgekit"), *step])
            sys.stderr.write(f"hint: when that is mended, run this file again, or: {again}\n")
            return code
    port = ["--port", str(given.port)] if given.port else []
    serve = [*edgekit, "deploy", *models(root, sums), "--offline", *port]
    if given.no_deploy:
        say("next", " ".join([str(python.parent / "edgekit"), *serve[4:]]))
        return 0
    sys.stdout.flush()
    if os.name == "posix":
        os.execve(serve[0], serve, clean())  # noqa: S606
    return subprocess.run(serve, env=clean(), check=False).returncode


def models(root: Path, sums: dict[str, str]) -> list[str]:
    """Return the models of the folder as a command line names them."""
    index = json.loads(read(root, sums, "index.json"))["manifests"]
    found = []
    for entry in index:
        if entry.get("artifactType") != MODEL:
            continue
        manifest = json.loads(read(root, sums, _blob(entry["digest"])))
        for layer in manifest["layers"]:
            if layer.get("annotations", {}).get("org.cncf.model.filepath") == "edgekit.model.json":
                record = json.loads(read(root, sums, _blob(layer["digest"])))["entry"]
                found.append(f"{record['model']}:{record['filetype']}")
    return found


def clean() -> dict[str, str]:
    """The environment without what would lead Python or pip elsewhere, or edgekit outside."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}
    return {**kept, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "EDGEKIT_OFFLINE": "1"}


def _arch() -> str:
    known = {"aarch64": "arm64", "amd64": "x86_64"}
    return known.get(platform.machine().lower(), platform.machine().lower())


def _blob(digest: str) -> str:
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise _damaged("the index")
    return f"blobs/sha256/{digest[7:]}"


def _damaged(name: str) -> Stop:
    return Stop(f"{name} does not hold what SHA256SUMS lists", "copy the folder again", 65)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:2]]


if __name__ == "__main__":
    sys.exit(main())
