"""Close a folder with SHA256SUMS and a signature, and find out whether it is still as it was.

`sha256sum -c SHA256SUMS` checks the bytes with nothing of ours installed; the signature says who
vouches for them. Every file is covered but the signature itself, and a file that is not listed is
as wrong as one that was changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgekit.bundle import oms
from edgekit.bundle.keys import Trust
from edgekit.bundle.tree import hash_files, list_files
from edgekit.errors import BadDataError, MissingInputError, from_os
from edgekit.store import write_durably

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

SIGNATURE: Final = "edgekit.oms.json"
SUMS: Final = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


@dataclass(frozen=True, slots=True)
class Seal:
    """Digests by path that a folder claims, and who signed them: None for nobody, with why."""

    digests: Mapping[str, str]
    signer: str | None
    reason: str


def close(
    root: Path,
    key: EllipticCurvePrivateKey | None,
    progress: Callable[[int], None] | None = None,
    without: Sequence[str] = (),
) -> dict[str, str]:
    """Write SHA256SUMS and, with a key, the signature. Return the digests.

    `without` names files that will be gone when the folder is used. Raises EdgekitError when a
    file cannot be read or written.
    """
    names = list_files(root)
    for own in (SIGNATURE, SUMS, *without):
        names.pop(own, None)
    digests = hash_files(root, names, progress)
    write_durably(root / SUMS, "".join(f"{d}  {n}\n" for n, d in digests.items()).encode())
    if key is not None:
        every = dict(sorted((digests | hash_files(root, {SUMS: 0})).items()))
        # The name in the statement must not depend on where the folder lies.
        signature = oms.sign("edgekit-bundle", every, key, ignored=[SIGNATURE])
        write_durably(root / SIGNATURE, signature)
    return digests


def read_seal(root: Path, trust: Trust) -> Seal:
    """Return what the folder claims of itself, proven by a trusted key; no file is hashed.

    Raises:
        BadDataError: no signature where the policy asks for one (`signature_missing`), a bad or
            unknown one, or files that are missing or not listed (`files_differ`).
        DeniedError: the key is on the denied list.
        MissingInputError: the folder has no list of digests.
    """
    names = list_files(root)
    signed = SIGNATURE in names
    if signed:
        data = _read(root / SIGNATURE)
        trusted = trust.key_for(oms.hint_of(data))
        statement = oms.verify(data, trusted.key)
        digests, signer = dict(statement.digests), trusted.name
        reason = f"signed with the key {trusted.name} ({trusted.hint[:12]}…)"
    else:
        if trust.policy == "require":
            raise BadDataError(
                f"{root.name} is not signed",
                code="signature_missing",
                hint='get it signed by its maker; trust.toml with signature = "warn" accepts '
                "unsigned folders",
            )
        digests, signer = _sums(root), None
        reason = "not signed; trust.toml accepts that"
    # The list does not hold itself, nor the signature that covers it.
    present = set(names) - {SIGNATURE} - (set() if signed else {SUMS})
    if missing := sorted(digests.keys() - present):
        raise _differ(root, f"{missing[0]} is missing", len(missing))
    if extra := sorted(present - digests.keys()):
        raise _differ(root, f"{extra[0]} is in no list", len(extra))
    return Seal(digests, signer, reason)


def check_bytes(
    root: Path, digests: Mapping[str, str], progress: Callable[[int], None] | None = None
) -> None:
    """Hash every file and compare. Raises BadDataError (`files_differ`) naming the first."""
    found = hash_files(root, dict.fromkeys(digests, 0), progress)
    wrong = sorted(name for name, digest in digests.items() if found[name] != digest)
    if wrong:
        raise _differ(root, f"{wrong[0]} does not hold the bytes that were listed", len(wrong))


def _sums(root: Path) -> dict[str, str]:
    if not (root / SUMS).is_file():
        raise MissingInputError(
            f"{root} has no {SUMS}",
            code="no_bundle",
            hint="pass the folder that edgekit bundle create made",
        )
    digests = {}
    for line in _read(root / SUMS).decode(errors="replace").splitlines():
        match = _LINE.fullmatch(line)
        if match is None or match[2] in digests:
            raise BadDataError(
                f"{SUMS} holds a line that is no digest",
                code="bad_layout",
                hint="get the folder again from its maker",
            )
        digests[match[2]] = match[1]
    return digests


def _differ(root: Path, what: str, count: int) -> BadDataError:
    more = f" and {count - 1} more" if count > 1 else ""
    return BadDataError(
        f"{root.name} is not as it was made: {what}{more}",
        code="files_differ",
        hint="copy it again from where it was whole, or get it again from its maker",
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise from_os(error) from error
