"""Signatures: the reference package verifies ours, we verify its, and every attack is refused."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.bundle import keys, oms, tree
from edgekit.errors import BadDataError, EdgekitError

SIGNATURE = "edgekit.oms.json"
IGNORED = (SIGNATURE,)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with nested files, an empty one and names in another script."""
    root = tmp_path / "model"
    (root / "blobs" / "sha256").mkdir(parents=True)
    (root / "index.json").write_text("{}")
    (root / "blobs" / "sha256" / "aa").write_bytes(os.urandom(100_000))
    (root / "blobs" / "empty").write_bytes(b"")
    (root / "Ünïcode ☃.txt").write_text("x")
    return root


@pytest.fixture
def pair(tmp_path: Path) -> tuple[ec.EllipticCurvePrivateKey, keys.TrustedKey]:
    public = keys.generate(tmp_path / "k.pem", tmp_path / "k.pub")
    return keys.read_private(tmp_path / "k.pem"), public


def signed(root: Path, key: ec.EllipticCurvePrivateKey) -> bytes:
    digests = tree.hash_files(root, tree.list_files(root))
    return oms.sign(root.name, digests, key, ignored=IGNORED)


def test_what_is_signed_is_what_is_there(
    folder: Path, pair: tuple[ec.EllipticCurvePrivateKey, keys.TrustedKey]
) -> None:
    private, public = pair
    signature = signed(folder, private)
    assert signature == signed(folder, private), "the same inputs give the same bytes"
    statement = oms.verify(signature, public.key)
    assert statement.digests == tree.hash_files(folder, tree.list_files(folder))
    assert statement.name == "model"
    assert oms.hint_of(signature) == statement.hint == public.hint


def test_the_reference_package_verifies_ours(
    folder: Path, pair: tuple[ec.EllipticCurvePrivateKey, keys.TrustedKey]
) -> None:
    import model_signing

    private, _ = pair
    (folder / SIGNATURE).write_bytes(signed(folder, private))
    verifier = model_signing.verifying.Config().use_elliptic_key_verifier(
        public_key=folder.parent / "k.pub"
    )
    verifier.verify(folder, folder / SIGNATURE)
    (folder / "index.json").write_text("{ }")
    with pytest.raises(ValueError, match=r"index\.json"):
        verifier.verify(folder, folder / SIGNATURE)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_we_verify_the_reference_packages(folder: Path, curve: ec.EllipticCurve) -> None:
    import model_signing
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    private = ec.generate_private_key(curve)
    secret = folder.parent / "theirs.pem"
    secret.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    model_signing.signing.Config().use_elliptic_key_signer(private_key=secret).sign(
        folder, folder / "model.sig"
    )
    statement = oms.verify((folder / "model.sig").read_bytes(), private.public_key())
    names = tree.list_files(folder)
    del names["model.sig"]
    assert statement.digests == tree.hash_files(folder, names)


Edit = Callable[[dict[str, Any]], object]


def in_payload(change: Edit) -> Edit:
    """Apply `change` to the statement inside a bundle."""

    def edit(bundle: dict[str, Any]) -> None:
        envelope = bundle["dsseEnvelope"]
        statement = json.loads(base64.b64decode(envelope["payload"]))
        change(statement)
        envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()

    return edit


def resources(statement: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = statement["predicate"]["resources"]
    return found


UNSIGNED_CHANGES: dict[str, tuple[Edit, str]] = {
    "a digest": (
        in_payload(lambda s: resources(s)[0].update(digest="0" * 64)),
        "signature_invalid",
    ),
    "a file left out": (in_payload(lambda s: resources(s).pop()), "signature_invalid"),
    "a file more": (
        in_payload(lambda s: resources(s).append(dict(resources(s)[0], name="more"))),
        "signature_invalid",
    ),
    "a path ignored": (
        in_payload(lambda s: s["predicate"]["serialization"]["ignore_paths"].append("index.json")),
        "signature_invalid",
    ),
    "links allowed": (
        in_payload(lambda s: s["predicate"]["serialization"].update(allow_symlinks=True)),
        "signature_invalid",
    ),
    "another payload type": (
        lambda b: b["dsseEnvelope"].update(payloadType="text/plain"),
        "signature_malformed",
    ),
    "another media type": (lambda b: b.update(mediaType="x"), "signature_malformed"),
    "no signature": (lambda b: b["dsseEnvelope"].update(signatures=[]), "signature_malformed"),
    "two signatures": (
        lambda b: b["dsseEnvelope"].update(signatures=b["dsseEnvelope"]["signatures"] * 2),
        "signature_malformed",
    ),
    "an empty signature": (
        lambda b: b["dsseEnvelope"]["signatures"][0].update(sig=""),
        "signature_invalid",
    ),
    "a signature of zeros": (
        lambda b: b["dsseEnvelope"]["signatures"][0].update(
            sig=base64.b64encode(bytes.fromhex("3006020100020100")).decode()
        ),
        "signature_invalid",
    ),
    "a signature that is no text": (
        lambda b: b["dsseEnvelope"]["signatures"][0].update(sig={"a": 1}),
        "signature_malformed",
    ),
    "another hint": (
        lambda b: b["verificationMaterial"]["publicKey"].update(hint="0" * 64),
        "signature_wrong_key",
    ),
    "no hint": (
        lambda b: b["verificationMaterial"]["publicKey"].update(hint=""),
        "signature_malformed",
    ),
    "no key at all": (lambda b: b.update(verificationMaterial={}), "signature_malformed"),
    "no envelope": (lambda b: b.pop("dsseEnvelope"), "signature_malformed"),
}


@pytest.mark.parametrize("what", UNSIGNED_CHANGES)
def test_a_changed_signature_file_is_refused(
    what: str, folder: Path, pair: tuple[ec.EllipticCurvePrivateKey, keys.TrustedKey]
) -> None:
    private, public = pair
    change, code = UNSIGNED_CHANGES[what]
    bundle = json.loads(signed(folder, private))
    change(bundle)
    with pytest.raises(BadDataError) as error:
        oms.verify(json.dumps(bundle).encode(), public.key)
    assert error.value.code == code


def resigned(bundle: bytes, key: ec.EllipticCurvePrivateKey, change: Edit) -> bytes:
    """A signature by a trusted key over a statement its owner should never have made."""
    edited = json.loads(bundle)
    in_payload(change)(edited)
    payload = base64.b64decode(edited["dsseEnvelope"]["payload"])
    raw = key.sign(oms._encoding(payload), oms._ecdsa(key.public_key()))
    edited["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(raw).decode()
    return json.dumps(edited).encode()


SIGNED_NONSENSE: dict[str, Edit] = {
    "climbs out": lambda s: resources(s)[0].update(name="../etc/passwd"),
    "climbs out inside": lambda s: resources(s)[0].update(name="a/../../b"),
    "absolute": lambda s: resources(s)[0].update(name="/etc/passwd"),
    "backslashes": lambda s: resources(s)[0].update(name="a\\b"),
    "a NUL": lambda s: resources(s)[0].update(name="a\0b"),
    "a dot": lambda s: resources(s)[0].update(name="./a"),
    "an empty name": lambda s: resources(s)[0].update(name=""),
    "twice": lambda s: resources(s).append(resources(s)[0]),
    "another hash": lambda s: resources(s)[0].update(algorithm="md5"),
    "a short digest": lambda s: resources(s)[0].update(digest="ab"),
    "a wrong root": lambda s: s["subject"][0]["digest"].update(sha256="0" * 64),
    "two subjects": lambda s: s["subject"].append(s["subject"][0]),
    "an older predicate": lambda s: s.update(predicateType="https://model_signing/Digests/v0.1"),
    "another statement": lambda s: s.update(_type="x"),
    "links": lambda s: s["predicate"]["serialization"].update(allow_symlinks=True),
    "shards": lambda s: s["predicate"]["serialization"].update(method="shards"),
    "no list": lambda s: s["predicate"].update(resources={}),
}


@pytest.mark.parametrize("what", SIGNED_NONSENSE)
def test_a_statement_that_makes_no_sense_is_refused(
    what: str, folder: Path, pair: tuple[ec.EllipticCurvePrivateKey, keys.TrustedKey]
) -> None:
    private, public = pair
    bad = resigned(signed(folder, private), private, SIGNED_NONSENSE[what])
    with pytest.raises(BadDataError) as error:
        oms.verify(bad, public.key)
    assert error.value.code == "signature_malformed"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
_KEY = ec.derive_private_key(7, ec.SECP256R1())
_GOOD = json.loads(oms.sign("m", {"a": "0" * 64}, _KEY, ignored=IGNORED))


@given(_JSON, st.sampled_from(["mediaType", "verificationMaterial", "dsseEnvelope"]))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_any_json_in_any_place_is_an_error_of_ours(value: object, place: str) -> None:
    oms.verify(json.dumps(_GOOD).encode(), _KEY.public_key())
    with pytest.raises(BadDataError):
        oms.verify(json.dumps({**_GOOD, place: value}).encode(), _KEY.public_key())


@given(st.binary(max_size=200))
def test_any_bytes_are_an_error_of_ours(data: bytes) -> None:
    with pytest.raises(BadDataError):
        oms.verify(data, _KEY.public_key())


def test_links_pipes_and_twins_are_not_files(folder: Path) -> None:
    link = folder / "link"
    link.symlink_to(folder / "index.json")
    with pytest.raises(BadDataError) as error:
        tree.list_files(folder)
    assert error.value.code == "not_a_plain_file"
    link.unlink()
    os.mkfifo(link)
    with pytest.raises(BadDataError):
        tree.list_files(folder)
    link.unlink()
    (folder / "INDEX.json").write_text("{}")
    with pytest.raises(BadDataError) as error:
        tree.list_files(folder)
    assert error.value.code == "ambiguous_name"


def test_trust(tmp_path: Path) -> None:
    config = tmp_path / "config"
    (config / "trust.d").mkdir(parents=True)
    ours = keys.generate(tmp_path / "ours.pem", config / "trust.d" / "ours.pub")
    other = keys.generate(tmp_path / "other.pem", tmp_path / "other.pub")
    trust = keys.load_trust(config)
    assert trust.policy == "require"
    assert trust.key_for(ours.hint).name == "ours"
    with pytest.raises(BadDataError) as error:
        trust.key_for(other.hint)
    assert error.value.code == "key_not_trusted"
    assert keys.load_trust(config, (tmp_path / "other.pub",)).key_for(other.hint).name == "other"
    (config / "trust.d" / "denied").write_text(f"# lost laptop\n{ours.hint}  # 2026\n")
    with pytest.raises(EdgekitError) as denied:
        keys.load_trust(config).key_for(ours.hint)
    assert (denied.value.code, denied.value.exit_code) == ("key_denied", 77)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("trust.d/denied", "not a digest"),
        ("trust.toml", "signature = 'never'"),
        ("trust.toml", "="),
    ],
)
def test_settings_that_cannot_be_read_trust_nobody(file: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "trust.d").mkdir()
    (tmp_path / file).write_text(text)
    with pytest.raises(EdgekitError) as error:
        keys.load_trust(tmp_path)
    assert error.value.exit_code == 78


def test_keys_are_kept_from_others_and_never_replaced(tmp_path: Path) -> None:
    keys.generate(tmp_path / "k.pem", tmp_path / "k.pub")
    assert (tmp_path / "k.pem").stat().st_mode & 0o777 == 0o600
    with pytest.raises(EdgekitError) as error:
        keys.generate(tmp_path / "k.pem", tmp_path / "k2.pub")
    assert error.value.code == "key_exists"
    (tmp_path / "k.pem").chmod(0o644)
    with pytest.raises(EdgekitError) as readable:
        keys.read_private(tmp_path / "k.pem")
    assert readable.value.code == "key_readable_by_others"
    (tmp_path / "bad.pub").write_text("nothing")
    with pytest.raises(BadDataError):
        keys.read_public(tmp_path / "bad.pub")
