"""A folder into a registry and back: with our client, with a generic one, and what may go wrong."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.bundle import keys, seal
from edgekit.bundle.create import Item, create
from edgekit.bundle.layout import Layout
from edgekit.bundle.oci_address import find_login, parse_address, parse_challenge
from edgekit.bundle.registry import LOGIN
from edgekit.bundle.transfer import PARTIAL, TITLE, pull, push
from edgekit.catalogue import find_model
from edgekit.errors import EdgekitError, UsageError
from edgekit.store import Entry
from edgekit_quantize import convert
from tests.support.cli import POCKET, Cli
from tests.support.registry import PASSWORD, USER, registry


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("bundle")
    made = convert(POCKET, home / "pocket.gguf", "Q8_0")
    entry = Entry("pocket", "Q8_0", made.sha256, made.file_bytes, made.tensor_bytes, "t", "t")
    keys.generate(home / "k.pem", home / "k.pub")
    key = keys.read_private(home / "k.pem")
    item = Item(find_model("pocket"), entry, home / "pocket.gguf", {"LICENSE": b"terms\n"})
    create(home / "b", [item], key, split_bytes=2_500_000, texts={"START-HERE.txt": b"go\n"})
    return home / "b"


def digests(root: Path) -> dict[str, str]:
    return {
        p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in root.rglob("*")
        if p.is_file()
    }


@pytest.mark.parametrize("login", ["none", "basic", "bearer"])
def test_there_and_back(
    folder: Path, tmp_path: Path, login: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOGIN, f"{USER}:{PASSWORD}")
    with registry(login=login) as held:
        address = parse_address(f"oci://{held.url}/models/pocket:v1")
        sent = push(folder, address)
        assert sent.moved_bytes == sent.bytes
        assert push(folder, address).moved_bytes == 0
        got = pull(address, tmp_path / "b")
        assert got.digest == sent.digest
        assert "pocket-Q8_0" in held.manifests
    assert digests(tmp_path / "b") == digests(folder)
    trust = keys.load_trust(tmp_path, (folder.parent / "k.pub",))
    seal.check_bytes(tmp_path / "b", seal.read_seal(tmp_path / "b", trust).digests)


def test_what_is_here_is_not_fetched(folder: Path, tmp_path: Path) -> None:
    with registry() as held:
        address = parse_address(f"oci://{held.url}/p:v1")
        push(folder, address)
        blobs = folder / "blobs" / "sha256"
        got = pull(address, tmp_path / "b", here=lambda sha: (blobs / sha,))
        assert got.moved_bytes < 100_000
    assert digests(tmp_path / "b") == digests(folder)


def test_a_cut_connection_and_a_killed_pull_are_gone_on_from(folder: Path, tmp_path: Path) -> None:
    with registry(cut_after=1_000_000) as held:
        address = parse_address(f"oci://{held.url}/p:v1")
        push(folder, address)
        got = pull(address, tmp_path / "cut")
        # No byte that came is asked for twice.
        assert got.moved_bytes == got.bytes
    assert digests(tmp_path / "cut") == digests(folder)


def test_a_token_that_ran_out_is_fetched_anew(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOGIN, f"{USER}:{PASSWORD}")
    with registry(login="bearer") as held:
        address = parse_address(f"oci://{held.url}/p:v1")
        push(folder, address)
        held.token_uses = 5
        held.tokens.clear()
        pull(address, tmp_path / "b")
        assert len(held.tokens) > 2
    assert digests(tmp_path / "b") == digests(folder)


def test_changed_bytes_are_refused(folder: Path, tmp_path: Path) -> None:
    with registry() as held:
        address = parse_address(f"oci://{held.url}/p:v1")
        push(folder, address)
        held.wrong = True
        with pytest.raises(EdgekitError) as error:
            pull(address, tmp_path / "b")
        assert error.value.code == "digest_mismatch"
        assert list((tmp_path / "b").iterdir()) == [tmp_path / "b" / PARTIAL]


def test_no_login_and_no_such_tag_say_what_to_do(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(LOGIN, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with registry(login="bearer") as held, pytest.raises(EdgekitError) as denied:
        push(folder, parse_address(f"oci://{held.url}/p:v1"))
    assert denied.value.code == "registry_denied"
    assert LOGIN in str(denied.value.hint)
    with registry() as held, pytest.raises(EdgekitError) as missing:
        pull(parse_address(f"oci://{held.url}/p:v2"), tmp_path / "b")
    assert missing.value.code == "not_in_registry"


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/../../x", "a\\b", "", "a//b", f"{PARTIAL}/x", "c:x"]
)
def test_a_manifest_cannot_write_elsewhere(name: str, tmp_path: Path) -> None:
    with registry() as held:
        layer = {"digest": f"sha256:{'0' * 64}", "size": 1, "annotations": {TITLE: name}}
        data = json.dumps({"layers": [layer]}).encode()
        held.manifests["v1"] = ("application/json", data)
        with pytest.raises(EdgekitError) as error:
            pull(parse_address(f"oci://{held.url}/p:v1"), tmp_path / "b")
    assert error.value.code == "bad_layout"


ORAS = """
import json, sys
from pathlib import Path
import oras.client
host, root, back = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
client = oras.client.OrasClient(hostname=host, insecure=True)
names = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
title = "org.opencontainers.image.title"
notes = back.with_name("notes.json")
notes.write_text(json.dumps({str(root / n): {title: n} for n in names}))
client.push(target=f"{host}/generic:v1", files=[str(root / n) for n in names],
            annotation_file=str(notes), disable_path_validation=True, quiet=True)
client.pull(target=f"{host}/generic:v1", outdir=str(back))
client.pull(target=f"{host}/ours:v1", outdir=str(back.with_name("ours")))
"""


def test_a_generic_client_pushes_and_pulls_the_same_digests(folder: Path, tmp_path: Path) -> None:
    with registry() as held:
        push(folder, parse_address(f"oci://{held.url}/ours:v1"))
        command = [sys.executable, "-W", "ignore", "-c", ORAS]
        done = subprocess.run(
            [*command, held.url, folder, tmp_path / "back"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert digests(tmp_path / "back") == digests(folder)
        assert digests(tmp_path / "ours") == digests(folder)
        pull(parse_address(f"oci://{held.url}/generic:v1"), tmp_path / "again")
        assert digests(tmp_path / "again") == digests(folder)
        # The layout inside is what registries know: every manifest and layer is there by digest.
        layout = Layout(folder)
        for entry in layout.index():
            assert entry.digest in held.manifests
            assert all(layer.digest in held.blobs for layer in layout.manifest(entry).layers)


def test_the_commands(folder: Path, tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    with registry() as held:
        sent = cli.json("bundle", "push", folder, f"oci://{held.url}/p:v1")
        got = cli.json("pull", f"oci://{held.url}/p:v1", "--output", tmp_path / "b")
        assert got["digest"] == sent["digest"]
        assert digests(tmp_path / "b") == digests(folder)
        refused = cli.run("pull", f"oci://{held.url}/p:v1", "--output", "x", "--offline")
        assert refused.returncode == 66


@pytest.mark.parametrize(
    ("text", "endpoint", "repository", "reference"),
    [
        ("oci://harbor.corp/ai/m:v1", "https://harbor.corp", "ai/m", "v1"),
        ("oci://localhost:5000/m", "http://localhost:5000", "m", "latest"),
        ("oci+http://zot:5000/a/b/c:1.0", "http://zot:5000", "a/b/c", "1.0"),
        (f"oci://r/m@sha256:{'a' * 64}", "https://r", "m", f"sha256:{'a' * 64}"),
    ],
)
def test_addresses(text: str, endpoint: str, repository: str, reference: str) -> None:
    found = parse_address(text)
    assert (found.endpoint, found.repository, found.reference) == (endpoint, repository, reference)


@pytest.mark.parametrize(
    "text", ["oci://", "oci://host", "oci://h/A", "oci://u@h/a", "oci://h/../a"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)


def test_challenges_and_logins_are_read() -> None:
    header = 'Bearer realm="https://a/token",service="s",scope="repository:m:pull,push"'
    assert parse_challenge(header)[1]["scope"] == "repository:m:pull,push"
    assert find_login("h", '{"auths": {"h": {"auth": "dTpw"}}}') == "u:p"
    assert find_login("h", '{"auths": {"h": {}}}') is None
    assert find_login("h", "no json") is None
