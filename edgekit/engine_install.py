"""Build, verify, install and roll back the engine.

    data/engine/installed.json      what `edgekit engine build` put in, and why
    data/engine/previous/*.whl      the build that it replaced, whole: `rollback` swaps the two

The previous build is packed from the installed files themselves, however they came there.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from edgekit import engine_build, engine_verify, paths, tuning
from edgekit.engine_build import REQUIREMENT, Build, Toolchain
from edgekit.engine_verify import Verdict
from edgekit.errors import (
    BusyError,
    ConfigError,
    EngineFailedError,
    MissingInputError,
    from_os,
)
from edgekit.store import write_durably

SCHEMA: Final = "edgekit.engine/1"
_LEFT_OUT: Final = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
"""Files of a .dist-info that an installer writes; a wheel has none of its own."""

Pip = Callable[[Sequence[str]], None]


@dataclass(frozen=True, slots=True)
class Draft:
    """What `build` would do: the choice, its reason, and where the wheel is or will be."""

    version: str
    found: Toolchain
    build: Build
    folder: Path
    sdist: Path | None

    @property
    def wheel(self) -> Path | None:
        """The wheel of this very build, if it was made earlier."""
        return next(iter(sorted(self.folder.glob("*.whl"))), None)


def folder() -> Path:
    return paths.data_dir() / "engine"


def draft(sdist: Path | None = None, found: Toolchain | None = None) -> Draft:
    """Look at this machine and choose compiler and flags; nothing is touched.

    Raises MissingInputError when `sdist` is not there, ConfigError when there is no compiler.
    """
    if sdist is not None and not sdist.exists():
        raise MissingInputError(f"there is no {sdist}", code="sdist_missing", hint="check the path")
    found = found or engine_build.look()
    try:
        build = engine_build.choose(found)
    except SystemExit as error:
        raise ConfigError(
            str(error), code="no_compiler", hint="install a compiler, then run this again"
        ) from None
    version = pinned_version()
    where = engine_build.wheel_folder(version, found, build, sdist)
    return Draft(version, found, build, where, sdist)


def pinned_version() -> str:
    """Return the version that this edgekit was made for."""
    from edgekit.surroundings import pinned_version as from_metadata

    return from_metadata(REQUIREMENT) or engine_build.pinned_version()


def run_pip(arguments: Sequence[str]) -> None:
    """Run pip for this interpreter; what it says goes to stderr. Raises EngineFailedError."""
    command = [sys.executable, "-m", "pip", *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    if done.returncode:
        raise EngineFailedError(
            f"pip ended with status {done.returncode}",
            code="pip_failed",
            hint="what pip said stands above; nothing was changed if it could not begin",
        )


def make_wheel(plan: Draft, *, rebuild: bool = False) -> Path:
    """Compile, or take the wheel that was made earlier. Takes minutes. Raises EngineFailedError."""
    if plan.wheel is not None and not rebuild:
        return plan.wheel
    try:
        engine_build.build_wheel(plan.version, plan.folder, plan.build, plan.sdist)
    except subprocess.CalledProcessError as error:
        offline = (
            "the folder must hold the sdist and, as wheels, "
            f"{', '.join(engine_build.BUILD_REQUIREMENTS)} and what they need"
        )
        raise EngineFailedError(
            f"the build failed: pip ended with status {error.returncode}",
            code="build_failed",
            hint=offline if plan.sdist else "what the compiler said stands above",
        ) from error
    except OSError as error:
        raise from_os(error) from error
    assert plan.wheel is not None
    return plan.wheel


def check(wheel: Path, model: Path | None = None) -> Verdict:
    """Try a wheel beside the installed engine, without installing it.

    `model`: a GGUF to try them on besides pocket, which is small.
    """
    installed = _distribution() is not None
    with (
        engine_verify.unpacked(wheel) as library,
        engine_verify.pocket_files(library) as files,
    ):
        more = {} if model is None else {model.stem: model}
        return engine_verify.verify(library, {**files, **more}, installed=installed)


def install(
    wheel: Path, record: Mapping[str, object], pip: Pip = run_pip, *, must_keep: bool = True
) -> Path | None:
    """Put a wheel in place of the installed engine; return where that one is kept.

    Raises EngineFailedError when the old engine cannot be kept (unless told that this does not
    matter), or when pip fails; the old engine is then put back.
    """
    with locked():
        try:
            previous = _keep_previous()
        except EngineFailedError:
            if must_keep:
                raise
            previous = None
        try:
            pip(_install_arguments(wheel))
        except EngineFailedError:
            if previous is not None:
                pip(_install_arguments(previous))
            raise
        _write(record)
        return previous


def rollback(pip: Pip = run_pip) -> Path:
    """Put the previous engine back and keep the present one in its place.

    Raises MissingInputError when there is none.
    """
    with locked():
        previous = previous_wheel()
        if previous is None:
            raise MissingInputError(
                "no earlier engine is kept",
                code="no_previous_engine",
                hint="`edgekit engine build` keeps the one that it replaces",
            )
        ready = Path(shutil.copy(previous, folder() / previous.name))
        try:
            _keep_previous()
            pip(_install_arguments(ready))
        finally:
            ready.unlink()
        _write({"build": None, "reason": "put back by `edgekit engine rollback`"})
        return previous


def previous_wheel() -> Path | None:
    return next(iter(sorted((folder() / "previous").glob("*.whl"))), None)


def show() -> dict[str, object]:
    """Return what is installed, how it was made as far as we know, and what can come back."""
    record: dict[str, object] = {}
    try:
        found = json.loads((folder() / "installed.json").read_bytes())
        if isinstance(found, dict):
            record = found
    except (OSError, ValueError):
        pass
    library, distribution = tuning.library_digest(), _distribution()
    ours = bool(record) and record.get("library") == library
    previous = previous_wheel()
    return {
        "schema": SCHEMA,
        "version": distribution.version if distribution else None,
        "pinned_version": pinned_version(),
        "library": library,
        "build": record.get("build") if ours else None,
        "reason": record.get("reason") if ours else None,
        "installed_at": record.get("installed_at") if ours else None,
        "previous": str(previous) if previous else None,
    }


def repack(distribution: importlib.metadata.Distribution, target: Path) -> Path:
    """Write the installed files of a distribution as a wheel into `target`; return it.

    Raises EngineFailedError when it has no list of files, or files outside its folder.
    """
    files = [f for f in distribution.files or () if f.suffix != ".pyc"]
    if not files or any(".." in f.parts for f in files):
        raise EngineFailedError(
            f"the installed {REQUIREMENT} cannot be kept for rollback: it has no plain file list",
            code="cannot_keep_engine",
            hint="--force installs the new build without a way back",
        )
    info = next(f.parts[0] for f in files if f.name == "METADATA" and len(f.parts) == 2)
    tags = _tags(distribution.read_text("WHEEL") or "")
    path = target / f"{info.removesuffix('.dist-info')}-{tags}.whl"
    lines = []
    partial = target / ".previous.partial"
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for file in files:
            if file.parts[0] == info and file.name in _LEFT_OUT:
                continue
            data = Path(str(distribution.locate_file(file))).read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            lines.append(f"{file.as_posix()},sha256={digest},{len(data)}")
            archive.writestr(file.as_posix(), data)
        lines.append(f"{info}/RECORD,,")
        archive.writestr(f"{info}/RECORD", "\n".join(lines) + "\n")
    os.replace(partial, path)
    return path


def record_of(plan: Draft, verdict: Verdict | None) -> dict[str, object]:
    """Return what is kept about a build: how it was made, and what was seen of it."""
    return {
        "build": dict(plan.build.env),
        "reason": plan.build.reason,
        "verdict": None if verdict is None else verdict_record(verdict),
    }


def verdict_record(verdict: Verdict) -> dict[str, object]:
    """Return a verdict as JSON."""
    return {
        "canaries": {name: asdict(canary) for name, canary in verdict.canaries.items()},
        "trials": [{**asdict(c), "gain": c.gain} for c in verdict.compared],
        "install": verdict.install,
        "reason": verdict.reason,
    }


@contextmanager
def locked() -> Iterator[None]:
    """Hold the engine against another `edgekit engine`. Raises BusyError, CannotCreateError."""
    import filelock

    try:
        folder().mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder() / ".lock", timeout=0):
            yield
    except filelock.Timeout:
        raise BusyError(
            "another edgekit is changing the engine",
            code="engine_locked",
            hint="wait for it to finish",
        ) from None
    except OSError as error:
        raise from_os(error) from error


def _keep_previous() -> Path | None:
    """Pack the installed engine; what was kept before is replaced. None: nothing is installed."""
    distribution = _distribution()
    if distribution is None:
        return None
    place, partial = folder() / "previous", folder() / "previous.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    kept = repack(distribution, partial)
    shutil.rmtree(place, ignore_errors=True)
    os.replace(partial, place)
    return place / kept.name


def _install_arguments(wheel: Path) -> list[str]:
    return ["install", "--quiet", "--no-deps", "--no-index", "--force-reinstall", str(wheel)]


def _write(record: Mapping[str, object]) -> None:
    importlib.invalidate_caches()
    whole = {
        "schema": SCHEMA,
        **record,
        "library": tuning.library_digest(),
        "installed_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_durably(folder() / "installed.json", (json.dumps(whole, indent=2) + "\n").encode())


def _distribution() -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution(REQUIREMENT)
    except importlib.metadata.PackageNotFoundError:
        return None


def _tags(text: str) -> str:
    """Join the tags of a WHEEL file as they stand in a wheel's name."""
    tags = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("Tag:")]
    if not tags:
        return "py3-none-any"
    parts = [sorted(set(column)) for column in zip(*(t.split("-", 2) for t in tags), strict=True)]
    return "-".join(".".join(part) for part in parts)
