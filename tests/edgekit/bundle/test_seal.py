"""A closed folder: sha256sum agrees, and every change to it is found."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.bundle import keys, seal
from edgekit.errors import EdgekitError

TRUST_NOBODY = keys.Trust((), frozenset(), "require")
WARN = keys.Trust((), frozenset(), "warn")


@pytest.fixture
def closed(tmp_path: Path) -> tuple[Path, keys.Trust]:
    root = tmp_path / "model.edgekit"
    (root / "blobs" / "sha256").mkdir(parents=True)
    rng = random.Random(5)
    for name, size in {"index.json": 300, "blobs/sha256/aa": 70_000, "blobs/sha256/bb": 1}.items():
        (root / name).write_bytes(rng.randbytes(size))
    public = keys.generate(tmp_path / "k.pem", tmp_path / "k.pub")
    seal.close(root, keys.read_private(tmp_path / "k.pem"))
    return root, keys.Trust((public,), frozenset(), "require")


def opened(root: Path, trust: keys.Trust) -> seal.Seal:
    found = seal.read_seal(root, trust)
    seal.check_bytes(root, found.digests)
    return found


def test_a_closed_folder_is_whole(closed: tuple[Path, keys.Trust]) -> None:
    root, trust = closed
    found = opened(root, trust)
    assert found.signer == "k"
    assert "signed with the key k" in found.reason
    subprocess.run(["sha256sum", "-c", "--strict", seal.SUMS], cwd=root, check=True)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    moved = root.with_name("elsewhere")
    shutil.copytree(root, moved)
    assert opened(moved, trust).signer == "k", "where a folder lies does not matter"
    seal.close(root, keys.read_private(root.parent / "k.pem"))
    assert {path: path.read_bytes() for path in before} == before, "closing again changes nothing"


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a byte": (lambda root: (root / "blobs/sha256/bb").write_bytes(b"!"), "files_differ"),
    "cut short": (lambda root: (root / "blobs/sha256/aa").write_bytes(b""), "files_differ"),
    "one file less": (lambda root: (root / "blobs/sha256/bb").unlink(), "files_differ"),
    "one file more": (lambda root: (root / "blobs/more").write_bytes(b""), "files_differ"),
    "a hidden file": (lambda root: (root / ".x").write_bytes(b""), "files_differ"),
    "a renamed file": (
        lambda root: (root / "blobs/sha256/bb").rename(root / "blobs/sha256/cc"),
        "files_differ",
    ),
    "two files exchanged": (
        lambda root: (
            (root / "blobs/sha256/bb").rename(root / "t"),
            (root / "index.json").rename(root / "blobs/sha256/bb"),
            (root / "t").rename(root / "index.json"),
        ),
        "files_differ",
    ),
    "the list edited": (
        lambda root: (root / seal.SUMS).write_text((root / seal.SUMS).read_text() + "\n"),
        "files_differ",
    ),
    "the list gone": (lambda root: (root / seal.SUMS).unlink(), "files_differ"),
    "the signature gone": (lambda root: (root / seal.SIGNATURE).unlink(), "signature_missing"),
    "the signature empty": (
        lambda root: (root / seal.SIGNATURE).write_bytes(b""),
        "signature_malformed",
    ),
    "a link to the same bytes": (
        lambda root: (
            shutil.copy(root / "index.json", root.parent / "copy"),
            (root / "index.json").unlink(),
            (root / "index.json").symlink_to(root.parent / "copy"),
        ),
        "not_a_plain_file",
    ),
    "a twin in other letters": (
        lambda root: shutil.copy(root / "index.json", root / "Index.json"),
        "ambiguous_name",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_every_change_is_found(what: str, closed: tuple[Path, keys.Trust]) -> None:
    root, trust = closed
    change, code = CHANGES[what]
    change(root)
    with pytest.raises(EdgekitError) as error:
        opened(root, trust)
    assert (error.value.code, error.value.exit_code) == (code, 65)


def test_any_flipped_bit_is_found(closed: tuple[Path, keys.Trust]) -> None:
    root, trust = closed
    files = sorted(path for path in root.rglob("*") if path.is_file())
    rng = random.Random(11)
    for number in range(1000):
        # Every second one in the signature itself, which no list covers.
        path = root / seal.SIGNATURE if number % 2 else rng.choice(files)
        good = path.read_bytes()
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(EdgekitError):
            opened(root, trust)
        path.write_bytes(good)
    opened(root, trust)


def test_an_unsigned_folder_needs_the_policy(closed: tuple[Path, keys.Trust]) -> None:
    root, _ = closed
    (root / seal.SIGNATURE).unlink()
    with pytest.raises(EdgekitError) as error:
        opened(root, TRUST_NOBODY)
    assert error.value.code == "signature_missing"
    assert opened(root, WARN).signer is None
    (root / "blobs/sha256/bb").write_bytes(b"?")
    with pytest.raises(EdgekitError) as changed:
        opened(root, WARN)
    assert changed.value.code == "files_differ"


def test_a_stranger_s_signature_is_refused_even_where_unsigned_is_not(
    closed: tuple[Path, keys.Trust],
) -> None:
    root, _ = closed
    with pytest.raises(EdgekitError) as error:
        opened(root, WARN)
    assert error.value.code == "key_not_trusted"
