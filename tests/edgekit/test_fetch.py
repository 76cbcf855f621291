"""Fetching from a real hub over real sockets, with everything that goes wrong on the way."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from edgekit import fetch_retry
from edgekit.errors import (
    BadDataError,
    BusyError,
    ConfigError,
    DeniedError,
    EdgekitError,
    IoFailedError,
    MissingInputError,
)
from edgekit.fetch import Result, fetch, works_for
from edgekit.fetch_http import Home
from edgekit.hub import CONNECT_RETRIES, Listing, endpoint_of, list_files
from edgekit.hub_errors import map_status
from tests.support.cli import free_port
from tests.support.hub_server import COMMIT, OTHER_COMMIT, Hub, git_oid, running
from tests.support.weights import repository, safetensors

CHUNK = 1 << 16
FILES = repository(5 * CHUNK + 1234, 3 * CHUNK)
FIRST, SECOND = (n for n in FILES if n.endswith(".safetensors"))


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running() as hub:
        hub.add("org/model", dict(FILES))
        yield hub


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fetch_retry.Patience.__init__, "__defaults__", (0, 0.01))


def listing(hub: Hub, name: str = "org/model", revision: str | None = None) -> Listing:
    return list_files(name, revision, mirror=hub.url, sleep=lambda _: None)


def bring(
    found: Listing, folder: Path, notes: list[str] | None = None, chunk: int = CHUNK
) -> Result:
    home = Home(found.repository, found.revision, found.endpoint, found.headers)
    works = works_for(found.files, folder / "files", folder / "journals", chunk)
    notice = notes.append if notes is not None else lambda _: None
    return fetch(works, home, notice=notice)


def check(folder: Path, files: dict[str, bytes] = FILES) -> None:
    for name, data in files.items():
        assert (folder / "files" / name).read_bytes() == data, name


def test_a_listing_has_sizes_digests_and_the_commit(hub: Hub) -> None:
    found = listing(hub)
    assert found.revision == COMMIT
    assert {f.name: f.size for f in found.files} == {n: len(d) for n, d in FILES.items()}
    by_name = {f.name: f for f in found.files}
    assert by_name[FIRST].sha256 == hashlib.sha256(FILES[FIRST]).hexdigest()
    assert by_name["config.json"].git_oid == git_oid(FILES["config.json"])
    assert found.bytes == sum(map(len, FILES.values()))


def test_everything_arrives_checked_and_only_once(hub: Hub, tmp_path: Path) -> None:
    result = bring(listing(hub), tmp_path)
    check(tmp_path)
    assert {f.name: f.sha256 for f in result.files} == {
        n: hashlib.sha256(d).hexdigest() for n, d in FILES.items()
    }
    assert {f.check for f in result.files} == {"sha256", "git"}
    assert sum(hub.sent.values()) == result.new_bytes == sum(map(len, FILES.values()))
    again = bring(listing(hub), tmp_path)
    assert (again.new_bytes, again.resumed_bytes) == (0, result.new_bytes)


@pytest.mark.parametrize("connections", [1, 7])
def test_one_file_over_any_number_of_connections(
    connections: int, hub: Hub, tmp_path: Path
) -> None:
    data = safetensors(20 * CHUNK + 5)
    hub.add("org/one", {"model.safetensors": data})
    found = listing(hub, "org/one")
    works = works_for(found.files, tmp_path / "files", tmp_path / "journals", CHUNK)
    home = Home(found.repository, found.revision, found.endpoint, found.headers)
    seen: list[tuple[int, int]] = []
    fetch(works, home, connections=connections, progress=lambda d, t: seen.append((d, t)))
    check(tmp_path, {"model.safetensors": data})
    assert seen[-1] == (len(data), len(data))
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)


def test_cut_connections_go_on_where_they_were(hub: Hub, tmp_path: Path) -> None:
    hub.fault("cut", "*.safetensors", times=12, after=CHUNK // 3)
    bring(listing(hub), tmp_path)
    check(tmp_path)
    total = sum(map(len, FILES.values()))
    assert total <= sum(hub.sent.values()) <= total + 12 * CHUNK // 3


def test_slow_is_waited_for_and_silent_is_cut(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.fetch.STALL_S", 0.4)
    hub.block = CHUNK // 2
    hub.fault("slow", FIRST, place="cdn", value=0.1, times=2)
    hub.fault("slow", SECOND, place="cdn", value=1.5, times=1)
    bring(listing(hub), tmp_path)
    check(tmp_path)


def test_429_and_5xx_are_waited_out_as_asked(hub: Hub, tmp_path: Path) -> None:
    hub.fault("status", "api", value=429, headers={"Retry-After": "3"})
    hub.fault("status", "*.safetensors", value=503, times=3, place="cdn")
    hub.fault("status", "*.safetensors", value=429, headers={"Retry-After": "0"}, times=2)
    slept: list[float] = []
    found = list_files("org/model", None, mirror=hub.url, sleep=slept.append)
    assert slept == [3.0]
    bring(found, tmp_path)
    check(tmp_path)


def test_a_server_that_stays_overloaded_is_left_and_gone_on_with_later(
    hub: Hub, tmp_path: Path
) -> None:
    hub.fault("status", SECOND, value=429, headers={"Retry-After": "0"}, times=10_000)
    with pytest.raises(BusyError) as caught:
        bring(listing(hub), tmp_path)
    assert caught.value.exit_code == 75
    assert "kept" in (caught.value.hint or "")
    hub.faults.clear()
    result = bring(listing(hub), tmp_path)
    check(tmp_path)
    assert result.resumed_bytes > 0


def test_a_server_that_asks_for_an_hour_is_not_waited_for(hub: Hub, tmp_path: Path) -> None:
    hub.fault("status", SECOND, value=503, headers={"Retry-After": "3600"}, times=10_000)
    with pytest.raises(BusyError, match="3600 s"):
        bring(listing(hub), tmp_path)


def test_nobody_there(tmp_path: Path) -> None:
    slept: list[float] = []
    with pytest.raises(IoFailedError) as caught:
        list_files("org/model", None, mirror=f"http://127.0.0.1:{free_port()}", sleep=slept.append)
    assert caught.value.exit_code == 74
    assert "--source DIR" in (caught.value.hint or "")
    assert len(slept) == CONNECT_RETRIES


def test_a_changed_etag_begins_that_file_again_and_says_so(hub: Hub, tmp_path: Path) -> None:
    """A mirror without digests: the ETag is all there is."""
    newer = safetensors(len(FILES[FIRST]), seed=99)
    hub.add("org/plain", dict(FILES), lists_sizes=False, linked=False)
    found = listing(hub, "org/plain")
    assert all(f.sha256 is None for f in found.files)
    hub.fault("etag", FIRST, value=newer, from_byte=2 * CHUNK)
    notes: list[str] = []
    bring(found, tmp_path, notes)
    check(tmp_path, FILES | {FIRST: newer})
    assert [n for n in notes if FIRST in n and "begins again" in n]


def test_a_file_that_changes_for_ever_is_given_up(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/plain", dict(FILES), lists_sizes=False, linked=False)
    found = listing(hub, "org/plain")
    for seed in range(40):
        hub.fault("etag", FIRST, value=safetensors(len(FILES[FIRST]), seed=seed), from_byte=CHUNK)
    with pytest.raises(BadDataError) as caught:
        bring(found, tmp_path)
    assert caught.value.code in ("file_changed", "digest_mismatch")


def test_wrong_bytes_are_refused_removed_and_fetched_anew(hub: Hub, tmp_path: Path) -> None:
    hub.fault("wrong", FIRST, place="cdn")
    with pytest.raises(BadDataError) as caught:
        bring(listing(hub), tmp_path)
    assert (caught.value.exit_code, caught.value.code) == (65, "digest_mismatch")
    assert FIRST in caught.value.message
    assert not (tmp_path / "files" / FIRST).exists()
    bring(listing(hub), tmp_path)
    check(tmp_path)


def test_wrong_small_files_are_refused_by_gits_digest(hub: Hub, tmp_path: Path) -> None:
    hub.fault("wrong", "config.json")
    with pytest.raises(BadDataError, match="its git digest differs"):
        bring(listing(hub), tmp_path)


def test_a_server_that_ignores_ranges(hub: Hub, tmp_path: Path) -> None:
    hub.fault("no_ranges", "*", times=10_000)
    hub.fault("cut", FIRST, place="cdn", after=2 * CHUNK)
    notes: list[str] = []
    bring(listing(hub), tmp_path, notes)
    check(tmp_path)
    assert [n for n in notes if "ignores ranges" in n]
    hub.faults.clear()
    assert bring(listing(hub), tmp_path).new_bytes == 0


def test_a_file_shorter_than_listed(hub: Hub, tmp_path: Path) -> None:
    found = listing(hub)
    hub.repositories["org/model"].files[FIRST] = FILES[FIRST][: CHUNK + 1]
    with pytest.raises(BadDataError) as caught:
        bring(found, tmp_path)
    assert caught.value.code == "file_changed"


@pytest.mark.parametrize("kind", ["gzip", "loop"])
def test_tricks_of_a_server_are_refused(kind: str, hub: Hub, tmp_path: Path) -> None:
    hub.fault(kind, FIRST, place="hub" if kind == "loop" else "cdn", times=100)
    with pytest.raises(BadDataError) as caught:
        bring(listing(hub), tmp_path)
    assert caught.value.exit_code == 65
    assert caught.value.code == {"gzip": "hostile_answer", "loop": "redirect_loop"}[kind]


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x/"])
def test_redirects_lead_to_http_alone(target: str, hub: Hub, tmp_path: Path) -> None:
    hub.fault("redirect", FIRST, value=target, times=100)
    with pytest.raises(BadDataError) as caught:
        bring(listing(hub), tmp_path)
    assert caught.value.code == "bad_redirect"


def test_the_token_goes_to_the_hub_alone(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.add("org/gated", dict(FILES), gated=True, token="hf_secret")
    bring(listing(hub, "org/gated"), tmp_path)
    check(tmp_path)
    headers = {a.place: {k.lower() for k in a.headers} for a in hub.asked}
    assert "authorization" in headers["hub"]
    assert all(
        "authorization" not in {k.lower() for k in a.headers} for a in hub.asked if a.place == "cdn"
    )
    assert any(a.place == "cdn" for a in hub.asked)


def test_a_saved_login_of_the_public_hub_is_not_given_to_a_mirror(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("hf_saved")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    listing(hub)
    assert all("authorization" not in {k.lower() for k in a.headers} for a in hub.asked)


@pytest.mark.parametrize(
    ("token", "said"), [(None, "set HF_TOKEN"), ("hf_other", "accept its conditions at")]
)
def test_a_gated_repository_says_where_to_accept(
    token: str | None, said: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.add("org/gated", dict(FILES), gated=True, token="hf_secret")
    with pytest.raises(DeniedError) as caught:
        bring(listing(hub, "org/gated"), tmp_path)
    assert (caught.value.exit_code, caught.value.code) == (77, "gated")
    assert "https://huggingface.co/org/gated" in (caught.value.hint or "")
    assert said in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "revision", "token", "kind"),
    [
        ("org/none", None, None, DeniedError),
        ("org/none", None, "hf_x", MissingInputError),
        ("org/model", "v9", None, MissingInputError),
        ("org/model", OTHER_COMMIT, None, MissingInputError),
        ("not a name", None, None, ConfigError),
        ("org/private", None, None, DeniedError),
    ],
)
def test_what_is_not_there(
    name: str,
    revision: str | None,
    token: str | None,
    kind: type[EdgekitError],
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.add("org/private", dict(FILES), token="hf_secret")
    with pytest.raises(kind) as caught:
        listing(hub, name, revision)
    assert caught.value.hint


def test_statuses_have_one_meaning_each() -> None:
    codes = {
        status: map_status(status, "", "https://h", "o/n", None, has_token=True).exit_code
        for status in (400, 401, 403, 404, 410, 451)
    }
    assert codes == {400: 74, 401: 77, 403: 77, 404: 66, 410: 66, 451: 74}


def test_a_mirror_under_a_path_that_lists_names_alone(tmp_path: Path) -> None:
    with running("/artifactory/api/huggingfaceml/models") as hub:
        hub.add("org/model", dict(FILES), lists_sizes=False, says_commit=False)
        with pytest.raises(BadDataError) as caught:
            listing(hub)
        assert caught.value.code == "no_commit"
        found = listing(hub, revision=COMMIT)
        # The heads tell what the listing does not.
        assert {f.name: f.sha256 for f in found.files}[FIRST] is not None
        bring(found, tmp_path)
        check(tmp_path)
        assert all(a.path.startswith(hub.prefix) for a in hub.asked if a.place == "hub")


def test_the_environment_names_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url + "/")
    assert list_files("org/model", None).endpoint == hub.url
    assert endpoint_of("https://mirror/x") == "https://mirror/x"


@pytest.mark.parametrize(
    "text", ["ftp://x", "mirror", "https://", "https://u:p@host", "http://h:99999", "http://h?x=1"]
)
def test_an_address_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError):
        endpoint_of(text)


@pytest.mark.parametrize(
    "siblings",
    [
        [{"rfilename": "../../config.json", "size": 3, "blobId": "ab" * 20}],
        [{"rfilename": "/etc/cron.d/x.json", "size": 3}],
        [{"rfilename": "a\\b.json"}],
        [{"rfilename": "config.json\0"}],
        [{"rfilename": f"{i}.json"} for i in range(100_000)],
        [{"name": "config.json"}],
        [{"rfilename": 7}],
        ["config.json"],
        [{"rfilename": "config.json", "size": -3, "blobId": "ab" * 20}],
        [{"rfilename": "config.json", "size": 1 << 40, "blobId": "ab" * 20}],
        [{"rfilename": "config.json", "size": 3, "blobId": "../../x"}],
        [
            {
                "rfilename": "model.safetensors",
                "lfs": {"size": 3, "sha256": "../x", "pointerSize": 1},
            }
        ],
        [{"rfilename": "x" * 70_000_000}],
    ],
    ids=lambda v: str(v)[:30],
)
def test_a_hostile_listing_is_refused_by_name(
    siblings: list[dict[str, object]], hub: Hub, tmp_path: Path
) -> None:
    hub.add("org/evil", {}, siblings=siblings)
    with pytest.raises(BadDataError) as caught:
        listing(hub, "org/evil")
    assert caught.value.exit_code == 65
    assert len(caught.value.message) < 1000
    assert list(tmp_path.iterdir()) == []


def test_an_answer_that_is_no_listing(hub: Hub) -> None:
    hub.fault("garbage", "api")
    with pytest.raises(BadDataError) as caught:
        listing(hub)
    assert caught.value.code == "bad_listing"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("model.safetensors", b"\x80\x04\x95pickled weights that run code"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:00"),
        ("model.safetensors", b"../../../etc/passwd"),
        ("model.safetensors", b"short"),
        ("model.gguf", b"GGML old file"),
    ],
)
def test_what_only_has_the_name_of_weights_is_refused(
    name: str, data: bytes, hub: Hub, tmp_path: Path
) -> None:
    hub.add("org/fake", {name: data, "config.json": b"{}"})
    with pytest.raises(BadDataError) as caught:
        bring(listing(hub, "org/fake"), tmp_path)
    assert caught.value.code == "not_weights"
    assert name in caught.value.message
    assert not (tmp_path / "files" / name).exists()


def test_bit_rot_between_two_runs_costs_a_chunk(hub: Hub, tmp_path: Path) -> None:
    """Each byte of an interrupted file that has changed since is noticed and fetched again."""
    data = safetensors(24 * CHUNK)
    hub.add("org/one", {"model.safetensors": data})
    hub.fault("status", "model.safetensors", place="cdn", value=404, from_byte=20 * CHUNK, times=99)
    with suppress(EdgekitError):
        bring(listing(hub, "org/one"), tmp_path)
    file = tmp_path / "files" / "model.safetensors"
    torn = bytearray(file.read_bytes())
    for chunk in (0, 3, 8, 15):
        torn[chunk * CHUNK + 77] ^= 4
    file.write_bytes(torn)
    hub.faults.clear()
    bring(listing(hub, "org/one"), tmp_path)
    check(tmp_path, {"model.safetensors": data})


def test_a_stopped_fetch_leaves_no_thread(hub: Hub, tmp_path: Path) -> None:
    hub.fault("status", SECOND, value=404, times=100)
    with pytest.raises(MissingInputError):
        bring(listing(hub), tmp_path)
    assert not [t for t in threading.enumerate() if t.name.startswith("fetch-")]
