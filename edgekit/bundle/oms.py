"""OpenSSF Model Signing v1.0 with an elliptic-curve key: sign the digests of a folder, verify them.

A Sigstore bundle holds a DSSE envelope, which holds an in-toto statement that lists every file
with its sha256. No certificate, no clock, no network: who holds the public key can check it, also
with the reference tool (`model_signing verify key`).
Source: github.com/ossf/model-signing-spec and the DSSE specification (pre-authentication
encoding).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from edgekit.errors import BadDataError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        ECDSA,
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )

BUNDLE_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://model_signing/signature/v1.0"
MAX_BYTES: Final = 64 << 20
"""A signature lists 150 bytes per file; this is room for 400,000 files."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"(?!/)(?!.*(?:^|/)\.{0,2}(?:/|$))[^\\\0]{1,1024}")
"""A relative path with `/`: no empty part, no `.` or `..`, no backslash."""


@dataclass(frozen=True, slots=True)
class Statement:
    """What a signature says: digests by relative path, and the paths it leaves out.

    `hint` is the sha256 of the signing key's public PEM: a name to look the key up by, not a
    proof.
    """

    name: str
    digests: Mapping[str, str]
    ignored: tuple[str, ...]
    hint: str


def key_hint(key: EllipticCurvePublicKey) -> str:
    """Return the sha256 of the key's public PEM in hexadecimal, as the format names keys."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def sign(
    name: str,
    digests: Mapping[str, str],
    key: EllipticCurvePrivateKey,
    *,
    ignored: Sequence[str],
) -> bytes:
    """Return the signature file for a folder called `name` with these digests.

    The same inputs give the same bytes: the nonce is derived from the message (RFC 6979).
    """
    ordered = sorted(digests.items())
    root = hashlib.sha256(b"".join(bytes.fromhex(digest) for _, digest in ordered)).hexdigest()
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": sorted(ignored),
            },
            "resources": [
                {"name": path, "algorithm": "sha256", "digest": digest} for path, digest in ordered
            ],
        },
    }
    payload = json.dumps(statement, indent=2).encode()
    public = key.public_key()
    bundle = {
        "mediaType": BUNDLE_TYPE,
        "verificationMaterial": {
            "publicKey": {"hint": key_hint(public)},
            "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [
                {
                    "sig": base64.b64encode(key.sign(_encoding(payload), _ecdsa(public))).decode(),
                    "keyid": "",
                }
            ],
        },
    }
    return json.dumps(bundle, indent=2).encode() + b"\n"


def hint_of(signature: bytes) -> str:
    """Return the hint in a signature file, before anything in it is proven.

    Raises BadDataError (code `signature_malformed`).
    """
    hint = _at(_object(signature), "verificationMaterial", "publicKey", "hint")
    if not isinstance(hint, str) or not _DIGEST.fullmatch(hint):
        raise _malformed("it names no key")
    return hint


def verify(signature: bytes, key: EllipticCurvePublicKey) -> Statement:
    """Check a signature file against one key and return what it says.

    Raises BadDataError: `signature_malformed`, `signature_wrong_key`, `signature_invalid`.
    """
    from cryptography.exceptions import InvalidSignature

    bundle = _object(signature)
    _refuse_unknown(bundle)
    if bundle.get("mediaType") != BUNDLE_TYPE:
        raise _malformed(f"its media type is {bundle.get('mediaType')!r}")
    hint = hint_of(signature)
    if hint != key_hint(key):
        raise BadDataError(
            f"the signature was made with another key (its hint is {hint[:12]}…)",
            code="signature_wrong_key",
            hint="use the public key of the one who signed, from a source that you trust",
        )
    envelope = bundle.get("dsseEnvelope")
    signatures = _at(bundle, "dsseEnvelope", "signatures")
    if not isinstance(envelope, dict) or envelope.get("payloadType") != PAYLOAD_TYPE:
        raise _malformed("it holds no in-toto statement")
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise _malformed("it must hold exactly one signature")
    payload = _base64(envelope.get("payload"))
    raw = _base64(_at(signatures[0], "sig"))
    try:
        key.verify(raw, _encoding(payload), _ecdsa(key))
    except InvalidSignature:
        raise BadDataError(
            "the signature does not match what it claims to sign",
            code="signature_invalid",
            hint="the folder was changed after it was signed; get it again from its maker",
        ) from None
    return _statement(payload, hint)


def _statement(payload: bytes, hint: str) -> Statement:
    """Read a statement whose signature holds; its maker may still have written nonsense."""
    statement = _object(payload)
    predicate, subjects = statement.get("predicate"), statement.get("subject")
    if (statement.get("_type"), statement.get("predicateType")) != (
        STATEMENT_TYPE,
        PREDICATE_TYPE,
    ):
        raise _malformed(f"it states {statement.get('predicateType')!r}")
    settings, resources = _at(predicate, "serialization"), _at(predicate, "resources")
    if not isinstance(settings, dict) or not isinstance(resources, list):
        raise _malformed("it lists no files")
    if (settings.get("method"), settings.get("hash_type")) != ("files", "sha256"):
        raise _malformed("it hashes in a way edgekit does not know")
    if settings.get("allow_symlinks") is not False:
        raise _malformed("it allows symbolic links")
    ignored = settings.get("ignore_paths", [])
    if not isinstance(ignored, list) or not all(isinstance(path, str) for path in ignored):
        raise _malformed("its list of ignored paths is none")
    digests: dict[str, str] = {}
    for resource in resources:
        path, digest = _at(resource, "name"), _at(resource, "digest")
        sound = isinstance(path, str) and _NAME.fullmatch(path) and path not in digests
        if not sound or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise _malformed(f"it lists {path!r} in a way that is not allowed")
        if _at(resource, "algorithm") != "sha256":
            raise _malformed(f"it hashes {path!r} with {_at(resource, 'algorithm')!r}")
        digests[str(path)] = digest
    root = hashlib.sha256(b"".join(map(bytes.fromhex, digests.values()))).hexdigest()
    one = subjects[0] if isinstance(subjects, list) and len(subjects) == 1 else None
    name = _at(one, "name")
    if not isinstance(name, str) or _at(one, "digest", "sha256") != root:
        raise _malformed("its subject is not the digest of the files it lists")
    return Statement(name, digests, tuple(ignored), hint)


def _encoding(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: type and payload, each with its length."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _ecdsa(key: EllipticCurvePublicKey) -> ECDSA:
    """The hash goes with the curve: P-256 SHA-256, P-384 SHA-384, P-521 SHA-512."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

    found = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}
    return ECDSA(found[key.curve.key_size], deterministic_signing=True)


def _object(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_BYTES:
        raise _malformed("it is far too large")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _malformed("it is no JSON") from error
    if not isinstance(value, dict):
        raise _malformed("it is no JSON object")
    return value


def _at(value: object, *keys: str) -> object:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _refuse_unknown(bundle: dict[str, Any]) -> None:
    """A signature file has no room for anything that the signature does not cover."""
    places: tuple[tuple[object, set[str]], ...] = (
        (bundle, {"mediaType", "verificationMaterial", "dsseEnvelope"}),
        (bundle.get("verificationMaterial"), {"publicKey", "tlogEntries"}),
        (_at(bundle, "verificationMaterial", "publicKey"), {"hint"}),
        (bundle.get("dsseEnvelope"), {"payload", "payloadType", "signatures"}),
    )
    signatures = _at(bundle, "dsseEnvelope", "signatures")
    for one in signatures if isinstance(signatures, list) else ():
        places += ((one, {"sig", "keyid"}),)
        if _at(one, "keyid") not in (None, ""):
            raise _malformed("it names a key by id")
    if _at(bundle, "verificationMaterial", "tlogEntries") not in (None, []):
        raise _malformed("it refers to a transparency log, which needs a network")
    for value, known in places:
        if isinstance(value, dict) and (more := sorted(value.keys() - known)):
            raise _malformed(f"it holds {more[0]!r}, which is not known")


def _base64(text: object) -> bytes:
    try:
        raw = base64.b64decode(str(text).encode("ascii"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _malformed("it holds no base64 where some belongs") from error
    if base64.b64encode(raw).decode() != text:
        raise _malformed("its base64 is not in its one form")
    return raw


def _malformed(what: str) -> BadDataError:
    return BadDataError(
        f"the signature file cannot be used: {what}",
        code="signature_malformed",
        hint="get the folder again from its maker",
    )
