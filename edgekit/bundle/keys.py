"""Signing keys, and which of them this machine trusts.

    trust.d/NAME.pub     public keys, PEM, P-256, P-384 or P-521; the file's name is the key's
    trust.d/denied       hints (sha256 of a public PEM) that are trusted no more, one per line
    trust.toml           signature = "require" (default) or "warn"

All under the configuration folder, which an administrator owns. Nothing is ever trusted because
it was seen first.
"""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from edgekit.bundle.oms import key_hint
from edgekit.errors import (
    BadDataError,
    CannotCreateError,
    ConfigError,
    DeniedError,
    MissingInputError,
    from_os,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )

CURVES: Final = ("secp256r1", "secp384r1", "secp521r1")
_HINT = re.compile(r"[0-9a-f]{64}")

Policy = Literal["require", "warn"]


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A public key and the name the administrator gave it."""

    name: str
    key: EllipticCurvePublicKey

    @property
    def hint(self) -> str:
        return key_hint(self.key)


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom this machine believes; `denied` holds hints, `policy` decides on unsigned folders."""

    keys: tuple[TrustedKey, ...]
    denied: frozenset[str]
    policy: Policy

    def key_for(self, hint: str) -> TrustedKey:
        """Return the trusted key with this hint.

        Raises DeniedError (`key_denied`) or BadDataError (`key_not_trusted`).
        """
        if hint in self.denied:
            raise DeniedError(
                f"the key {hint[:12]}… that signed this is on the list of denied keys",
                code="key_denied",
                hint="ask the maker for a folder signed with a key that is still trusted",
            )
        for key in self.keys:
            if key.hint == hint:
                return key
        known = ", ".join(f"{key.name} ({key.hint[:12]}…)" for key in self.keys) or "none"
        raise BadDataError(
            f"the key {hint[:12]}… that signed this is not one this machine trusts ({known})",
            code="key_not_trusted",
            hint="put the maker's public key into trust.d as NAME.pub, from a source you trust, "
            "or pass it with --trust",
        )


def generate(private: Path, public: Path) -> TrustedKey:
    """Make a P-256 key pair. The private file is readable by its owner alone.

    Raises CannotCreateError when a file exists or cannot be written.
    """
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    key = ec.generate_private_key(ec.SECP256R1())
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for path, data, mode in ((private, secret, 0o600), (public, pem, 0o644)):
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError as error:
            raise CannotCreateError(
                f"{path} exists", code="key_exists", hint="choose another name; no key is replaced"
            ) from error
        except OSError as error:
            raise from_os(error) from error
        with os.fdopen(fd, "wb") as file:
            file.write(data)
    return TrustedKey(public.stem, key.public_key())


def read_private(path: Path) -> EllipticCurvePrivateKey:
    """Read a private key in PEM, not encrypted.

    Raises MissingInputError, or DeniedError (`key_readable_by_others`), BadDataError (`bad_key`).
    """
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read(path)
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise DeniedError(
            f"{path} can be read by others than its owner",
            code="key_readable_by_others",
            hint=f"chmod 600 {path}; if others could read it, make a new key",
        )
    try:
        key = load_pem_private_key(data, None)
    except (ValueError, TypeError) as error:
        raise _bad(path, "no private key in PEM, or one with a password") from error
    if not isinstance(key, EllipticCurvePrivateKey) or key.curve.name not in CURVES:
        raise _bad(path, f"no key of the curves {', '.join(CURVES)}")
    return key


def read_public(path: Path) -> TrustedKey:
    """Read a public key in PEM. Raises MissingInputError, BadDataError (`bad_key`)."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_read(path))
    except ValueError as error:
        raise _bad(path, "no public key in PEM") from error
    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise _bad(path, f"no key of the curves {', '.join(CURVES)}")
    return TrustedKey(path.stem, key)


def load_trust(folder: Path, extra: tuple[Path, ...] = ()) -> Trust:
    """Return what the configuration folder trusts, and the keys in `extra`.

    Raises ConfigError for a policy or a denied list that cannot be read, and as `read_public`.
    """
    keys = [read_public(path) for path in sorted((folder / "trust.d").glob("*.pub"))]
    keys += [read_public(path) for path in extra]
    return Trust(tuple(keys), _denied(folder / "trust.d" / "denied"), _policy(folder))


def _denied(path: Path) -> frozenset[str]:
    try:
        lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    except FileNotFoundError:
        return frozenset()
    except (OSError, UnicodeDecodeError) as error:
        # A list that cannot be read may name any key: nothing is trusted then.
        raise _unreadable(path, str(error)) from error
    hints = [line.lower() for line in lines if line]
    if wrong := [hint for hint in hints if not _HINT.fullmatch(hint)]:
        raise _unreadable(path, f"{wrong[0][:40]!r} is no sha256")
    return frozenset(hints)


def _policy(folder: Path) -> Policy:
    path = folder / "trust.toml"
    try:
        found = tomllib.loads(path.read_text()).get("signature", "require")
    except FileNotFoundError:
        return "require"
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise _unreadable(path, str(error)) from error
    if found not in ("require", "warn"):
        raise _unreadable(path, f"signature must be require or warn, is {found!r}")
    return "require" if found == "require" else "warn"


def _unreadable(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"{path} cannot be used: {why}", code="bad_trust_settings", hint="mend or remove the file"
    )


def _bad(path: Path, why: str) -> BadDataError:
    return BadDataError(
        f"{path} holds {why}", code="bad_key", hint="edgekit bundle keygen makes a fitting pair"
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise MissingInputError(
            f"there is no file {path}", code="key_missing", hint="check the path of the key"
        ) from error
    except OSError as error:
        raise from_os(error) from error
