"""Which packages a target needs: requirements followed through wheels' own metadata. Pure.

pip judges environment markers on the machine it runs on, not on the one it downloads for; here
they are judged for the target, so what only Windows or an older Python needs is not left out.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgekit.bundle.target import Target
from edgekit.errors import BadDataError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

EXTRAS: Final = ("bundle", "quantize", "report", "serve")
"""What a machine without a network runs; `hub` fetches, so it stays behind."""


@dataclass(frozen=True, slots=True)
class Package:
    """A package's own word: name, version, what it requires, which Python."""

    name: str
    version: str
    requires: tuple[str, ...]
    python: str = ""


def package_of(wheel: Path) -> Package:
    """Read a wheel's metadata. Raises BadDataError (`bad_wheel`)."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            depth = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
            name = min(depth, key=lambda n: n.count("/"))
            return parse_metadata(archive.read(name).decode())
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise BadDataError(
            f"{wheel.name} is no sound wheel: {error}",
            code="bad_wheel",
            hint="get it again from its index",
        ) from error


def parse_metadata(text: str) -> Package:
    """Read a METADATA file."""
    from packaging.utils import canonicalize_name

    found = HeaderParser().parsestr(text)
    requires = tuple(found.get_all("Requires-Dist") or ())
    name = canonicalize_name(str(found["Name"]))
    return Package(name, str(found["Version"]), requires, str(found["Requires-Python"] or ""))


def follow(
    packages: Mapping[str, Package], target: Target, root: str = "edgekit"
) -> tuple[list[str], list[str]]:
    """Return the names that `root` with EXTRAS reaches, and requirements that nothing meets.

    Raises BadDataError (`wheels_disagree`) when two packages cannot live together, or one does
    not take the target's Python.
    """
    reached: dict[str, set[str]] = {}
    missing: dict[str, str] = {}
    waiting: list[tuple[str, frozenset[str]]] = [(root, frozenset(EXTRAS)), ("pip", frozenset())]
    while waiting:
        name, extras = waiting.pop()
        package = packages.get(name)
        if package is None:
            missing.setdefault(name, name)
            continue
        seen = reached.setdefault(name, set())
        new = {"", *extras} - seen
        seen |= new
        for wanted in _wanted(package, target, new):
            key = _key(wanted.name)
            held = packages.get(key)
            if held is None:
                missing[key] = f"{wanted.name}{wanted.specifier}"
                continue
            if not wanted.specifier.contains(held.version, prereleases=True):
                raise _disagree(f"{name} needs {wanted.name}{wanted.specifier}, {held.version} is")
            if key not in reached or not wanted.extras <= reached[key]:
                waiting.append((key, frozenset(wanted.extras)))
    _check_python([packages[name] for name in reached], target)
    return sorted(reached), sorted(missing.values())


def _wanted(package: Package, target: Target, extras: set[str]) -> list[Requirement]:
    from packaging.requirements import Requirement

    found = []
    for line in package.requires:
        one = Requirement(line)
        cases = [{**target.markers, "extra": extra} for extra in sorted(extras)]
        # Without a marker it is wanted always: once, with the package's first visit.
        wanted = any(map(one.marker.evaluate, cases)) if one.marker else "" in extras
        if wanted:
            found.append(one)
    return found


def _check_python(packages: list[Package], target: Target) -> None:
    from packaging.specifiers import SpecifierSet

    for package in packages:
        # Any patch release will do: 3.11.0 itself may lie outside of ">=3.11.1".
        version = f"3.{target.python}.99"
        if not SpecifierSet(package.python).contains(version):
            raise _disagree(f"{package.name} needs Python {package.python}, 3.{target.python} is")


def _key(name: str) -> str:
    from packaging.utils import canonicalize_name

    return str(canonicalize_name(name))


def _disagree(what: str) -> BadDataError:
    return BadDataError(
        f"the wheels do not go together: {what} there",
        code="wheels_disagree",
        hint="take the one that is wrong out of the folder passed with --wheels, or mend this "
        "environment with pip install 'edgekit[all]'",
    )
