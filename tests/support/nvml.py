"""Build the stand-in for NVIDIA's library and point a child process at it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml_stub.c")


def compiler() -> str | None:
    """The system's C compiler, if it has one."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def build_stub(folder: Path) -> Path:
    """Compile the stub as `folder`/libnvidia-ml.so.1, the name that pynvml loads."""
    library = folder / "libnvidia-ml.so.1"
    cc = compiler()
    assert cc is not None
    command = [cc, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*command, "-o", str(library), str(SOURCE)], check=True)
    return library


def stub_env(library: Path, facts: Path) -> dict[str, str]:
    """What a child needs in its environment to see the GPUs that the file `facts` describes."""
    return {"LD_LIBRARY_PATH": str(library.parent), "NVML_STUB": str(facts)}
