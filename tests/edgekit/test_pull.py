"""`edgekit pull` as people run it: killed, repeated, offline, from mirrors, under licences."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.catalogue import find_device
from edgekit.checkpoints import MANIFEST, Checkpoints, read_folder
from edgekit.deploy import obtain
from edgekit.fetch import CHUNK_BYTES
from edgekit.fetch_journal import read_journal
from edgekit.fetch_step import fetched
from edgekit.fit import choose
from edgekit.named import find_named
from edgekit.plan import Plan, make_plan
from edgekit.pull import Options
from edgekit.store import Store
from tests.support.cli import POCKET, Cli, free_port
from tests.support.hub_server import COMMIT, Hub, running
from tests.support.inside import Inside, attached
from tests.support.weights import repository, safetensors

MIB = 1 << 20
FILES = repository(300_000, 200_000)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running() as hub:
        hub.add("org/model", dict(FILES))
        yield hub


@pytest.fixture
def cli(tmp_path: Path, hub: Hub) -> Cli:
    return Cli(tmp_path, {"EDGEKIT_MIRROR": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1"})


@pytest.fixture
def inside(cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Inside:
    return attached(cli, monkeypatch, capsys)


def folder_of(cli: Cli) -> Path:
    found = [f for f in (cli.store / "checkpoints").iterdir() if not f.name.startswith(".")]
    assert len(found) == 1
    return found[0]


def check(cli: Cli, files: dict[str, bytes]) -> None:
    folder = folder_of(cli)
    assert {f.name: f.sha256 for f in read_folder(folder).files} == {
        name: hashlib.sha256(data).hexdigest() for name, data in files.items()
    }
    for name, data in files.items():
        assert (folder / name).read_bytes() == data, name
    assert list((cli.store / "partial").glob("*/")) == []


def test_a_pull_says_what_came_and_the_second_asks_nobody(inside: Inside, hub: Hub) -> None:
    plan = inside.json("pull", f"org/model@{COMMIT}", "--dry-run")
    assert plan["bytes"] == sum(map(len, FILES.values()))
    assert not inside.store.exists()
    record = inside.json("pull", f"org/model@{COMMIT}")
    assert record["schema"] == "edgekit.pull/1"
    assert record["revision"] == COMMIT
    assert record["fetched_bytes"] == record["bytes"] == plan["bytes"]
    assert {f["check"] for f in record["files"]} == {"sha256", "git"}
    check(inside, FILES)
    before = len(hub.asked)
    again = inside.json("pull", f"org/model@{COMMIT}", "--offline")
    assert again["store_hit"]
    assert len(hub.asked) == before
    text = inside.run("pull", f"org/model@{COMMIT}").stdout
    assert "in the store already" in text
    rows = inside.json("store", "ls")["rows"]
    assert [r["kind"] for r in rows] == ["checkpoint"]


def test_offline_says_what_is_missing(
    inside: Inside, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert inside.error("pull", "org/model", "--offline")[:2] == (66, "offline")
    assert inside.error("deploy", "org/model", "--offline")[:2] == (66, "offline")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = inside.run("pull", "org/model", "--dry-run", "--json")
    assert done.returncode == 66
    assert "org/model@main" in json.loads(done.stdout)["error"]["message"]
    assert hub.asked == []


def test_a_branch_is_pinned_to_its_commit(inside: Inside, hub: Hub) -> None:
    assert inside.json("pull", "org/model")["revision"] == COMMIT
    assert inside.json("pull", "org/model", "--offline")["revision"] == COMMIT
    newer = {**FILES, "README.md": b"a newer model\n"}
    hub.add("org/model", newer, commit="f" * 40)
    sent = sum(hub.sent.values())
    record = inside.json("pull", "org/model")
    assert record["revision"] == "f" * 40
    # The shards are the same: linked, not fetched again.
    assert sum(hub.sent.values()) - sent < 1000
    assert len(list((inside.store / "checkpoints").iterdir())) == 2


def test_the_store_can_be_moved(
    inside: Inside, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside.json("pull", "org/model")
    moved = tmp_path / "elsewhere"
    shutil.move(inside.store, moved)
    monkeypatch.setenv("EDGEKIT_STORE", str(moved))
    there = inside
    assert there.json("pull", "org/model", "--offline")["store_hit"]
    assert there.json("store", "verify")["problems"] == []
    for file in moved.rglob("*"):
        if file.is_file() and file.suffix in (".json", ".jsonl"):
            assert str(tmp_path).encode() not in file.read_bytes()


def test_the_disk_is_looked_at_first(inside: Inside, hub: Hub) -> None:
    huge = {"rfilename": "model.safetensors"}
    huge |= {"lfs": {"size": 1 << 49, "sha256": "ab" * 32, "pointerSize": 134}}  # type: ignore[dict-item]
    hub.add("org/huge", {}, siblings=[huge])
    done = inside.run("pull", "org/huge", "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (73, "disk_full")
    assert hub.content_requests() == []


def test_a_disk_that_fills_up_is_said_to_and_gone_on_with(cli: Cli, inside: Inside) -> None:
    """A limit on file sizes stands in for the disk."""
    limited = ["bash", "-c", 'ulimit -f 200; exec "$@"', "bash", *cli.command("pull", "org/model")]
    done = subprocess.run(limited, env=cli.environment(), capture_output=True, text=True)
    assert done.returncode == 73, done.stderr
    assert "free some space" in done.stderr
    assert not (cli.store / "checkpoints").exists()
    inside.json("pull", "org/model")
    check(inside, FILES)


def test_hostile_repositories_leave_nothing_outside_the_store(inside: Inside, hub: Hub) -> None:
    before = sorted(p for p in inside.home.rglob("*"))
    for number, name in enumerate(["../../evil.json", "/tmp/evil.json", "a\\..\\evil.json", "x\0"]):
        repository = f"org/evil{number}"
        hub.add(repository, {}, siblings=[{"rfilename": name, "size": 1, "blobId": "ab" * 20}])
        done = inside.run("pull", repository, "--json")
        assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (65, "hostile_name")
    assert sorted(p for p in inside.home.rglob("*")) == before


def test_code_and_pickles_are_never_fetched(inside: Inside, hub: Hub) -> None:
    hub.add(
        "org/remote",
        {
            **FILES,
            "config.json": b'{"auto_map": {"AutoModel": "modeling.Evil"}}',
            "modeling.py": b"open('/tmp/canary', 'w')",
            "pytorch_model.bin": b"\x80\x04",
        },
    )
    record = inside.json("pull", "org/remote", "--dry-run")
    assert {x["name"] for x in record["left_out"]} == {"modeling.py", "pytorch_model.bin"}
    inside.json("pull", "org/remote")
    asked = " ".join(a.path for a in hub.content_requests())
    assert "modeling.py" not in asked
    assert ".bin" not in asked


def test_a_gguf_of_a_repository_is_checked_and_described(
    inside: Inside, hub: Hub, tmp_path: Path
) -> None:
    made = tmp_path / "pocket.gguf"
    assert inside.run("quantize", POCKET, made, "--filetype", "Q4_K_M").returncode == 0
    hub.add("org/quants", {"q4/pocket.gguf": made.read_bytes(), "q8.gguf": b"GGUF other"})
    record = inside.json("pull", "org/quants/q4/pocket.gguf")
    assert [f["name"] for f in record["files"]] == ["q4/pocket.gguf"]
    for found in (record["gguf"], inside.json("pull", made)):
        assert (found["architecture"], found["filetype"]) == ("llama", "Q4_K_M")
        assert {"Q4_K", "Q6_K", "F32"} <= {t["type"] for t in found["tensor_types"]}
        assert found["chat_template_sha256"]
    text = inside.run("pull", made).stdout
    assert "its own chat template" in text
    arguments = ("deploy", "pocket", "--dry-run", "--source")
    for source in (made, "org/quants/q4/pocket.gguf"):
        plan = inside.json(*arguments, source)["plan"]
        assert plan["choice"]["filetype"] == "Q4_K_M"
        assert "finished GGUF" in plan["steps"][1]["summary"]
    assert inside.run("deploy", "qwen2.5-coder-7b", "--dry-run", "--source", made).returncode == 65
    made.write_bytes(made.read_bytes()[:1000])
    assert inside.run("pull", made).returncode == 65


def test_one_file_of_a_repository_is_not_the_whole_of_it(inside: Inside, hub: Hub) -> None:
    hub.add("org/both", {**FILES, "a.gguf": b"GGUF one", "b.gguf": b"GGUF two"})
    checkpoints = Checkpoints(inside.store)
    for name in ("a.gguf", "b.gguf"):
        # Too short to be described, but it is there.
        assert inside.error("pull", f"org/both/{name}")[0] == 65
        found = checkpoints.find("org/both", None, (name,))
        assert found is not None
        assert [f.name for f in found.manifest.files] == [name]
    assert checkpoints.find("org/both", None) is None
    assert inside.json("pull", "org/both")["bytes"] == sum(map(len, FILES.values()))
    assert checkpoints.find("org/both", None, ("c.gguf",)) is None


def test_a_repository_that_no_catalogue_knows_is_planned_for(inside: Inside, hub: Hub) -> None:
    pocket = {f.name: f.read_bytes() for f in POCKET.iterdir() if f.is_file()}
    hub.add("org/Mine", pocket)
    plan = inside.json("deploy", "org/Mine", "--dry-run", "--filetype", "Q8_0")["plan"]
    assert plan["model"] == "mine"
    assert plan["fetch"]["repository"] == "org/Mine"
    assert plan["fetch"]["revision"] == COMMIT
    assert sum(hub.sent.values()) == len(pocket["config.json"])
    named = inside.json("deploy", "code-llama-4", "--dry-run", "--source", "org/Mine")["plan"]
    assert named["model"] == "code-llama-4"


class Lines:
    """What a deployment would show."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, str]] = []

    def begin(self, kind: str, text: str) -> None: ...
    def progress(self, done: int, total: int) -> None: ...
    def end(self, kind: str, text: str) -> None:
        self.ended.append((kind, text))


def test_a_plan_without_weights_fetches_and_converts_them(inside: Inside, hub: Hub) -> None:
    hub.add("org/Mine", {f.name: f.read_bytes() for f in POCKET.iterdir() if f.is_file()})
    store, options, lines = Store(inside.store), Options(mirror=hub.url), Lines()

    def plan() -> Plan:
        card = find_named("org/Mine", None, inside.store, options).card
        choice = choose(card, find_device("a10"), users=1, filetype="Q4_0")
        return make_plan(card, find_device("a10"), choice, store, host="h", port=1)

    with_weights = fetched(plan(), store, lines, options)
    assert with_weights.weights == folder_of(inside)
    made = obtain(with_weights, store, lines)
    assert made.parent == inside.store / "blobs"
    assert [kind for kind, _ in lines.ended] == ["fetch", "quantize"]
    assert f"org/Mine@{COMMIT[:7]}" in lines.ended[0][1]
    kinds = [r["kind"] for r in inside.json("store", "ls")["rows"]]
    assert sorted(kinds) == ["checkpoint", "model"]
    asked = len(hub.asked)
    assert [step.done for step in plan().steps[:2]] == [True, True]
    assert len(hub.asked) == asked


@pytest.mark.slow
def test_a_deployment_fetches_converts_and_serves(cli: Cli, hub: Hub) -> None:
    hub.add("org/Mine", {f.name: f.read_bytes() for f in POCKET.iterdir() if f.is_file()})
    arguments = ("deploy", "org/Mine:Q4_0", "--no-measure", "--no-stay", "--port")
    record = cli.json(*arguments, str(free_port()))
    assert (record["model"], record["filetype"]) == ("mine", "Q4_0")
    assert cli.json(*arguments, str(free_port()), "--offline")["store_hit"]


GATED = """
id = "lawyered"
name = "Lawyered"
params = 7_802_112
n_ctx_train = 16384
header_bytes = 128_608
[licence]
name = "{licence}"
acceptance_required = true
[[sources]]
kind = "hub"
location = "org/model"
revision = "{commit}"
[config]
architectures = ["MistralForCausalLM"]
model_type = "mistral"
hidden_size = 256
intermediate_size = 1024
num_hidden_layers = 6
num_attention_heads = 4
num_key_value_heads = 1
head_dim = 64
vocab_size = 4096
max_position_embeddings = 16384
"""


def test_a_licence_is_accepted_before_anything_is_fetched(inside: Inside, hub: Hub) -> None:
    file = inside.config / "models" / "lawyered.toml"
    file.parent.mkdir(parents=True)
    file.write_text(GATED.format(licence="Careful License 1", commit=COMMIT))
    for arguments in (("pull", "lawyered"), ("pull", "org/model"), ("deploy", "lawyered:Q4_0")):
        done = inside.run(*arguments, "--json")
        error = json.loads(done.stdout)["error"]
        assert (done.returncode, error["code"]) == (77, "licence_not_accepted")
        assert "edgekit licence lawyered --accept" in error["hint"]
    assert hub.asked == []
    assert inside.json("licence", "lawyered")["accepted"] is None
    record = inside.json("licence", "lawyered", "--accept")["accepted"]
    assert record["licence"] == "Careful License 1"
    assert record["repository"] == "org/model"
    assert "@" in record["who"]
    assert "by " in inside.run("licence", "lawyered").stdout
    assert inside.json("pull", "lawyered")["revision"] == COMMIT
    # Other terms are other terms.
    file.write_text(GATED.format(licence="Careful License 2", commit="f" * 40))
    assert inside.run("pull", "lawyered").returncode == 77


def test_two_at_once_are_one_after_the_other(cli: Cli, inside: Inside, hub: Hub) -> None:
    hub.pace_s, hub.block = 0.3, 1 << 14
    first = cli.start("pull", "org/model")
    deadline = time.monotonic() + 60
    while not hub.content_requests():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        assert inside.error("pull", "org/model")[:2] == (75, "store_locked")
    finally:
        hub.pace_s = 0
        out, _ = first.communicate(timeout=60)
    assert first.returncode == 0, out
    check(cli, FILES)


def journaled(cli: Cli) -> int:
    """Bytes that an interrupted fetch has on record."""
    total = 0
    for file in (cli.store / "partial").rglob("*.jsonl"):
        if (found := read_journal(file.read_bytes())) is not None:
            have = sum(m.end - m.start for m in found.marks.values())
            total += found.size if found.done else have
    return total


def kill_at(cli: Cli, hub: Hub, target: int, *arguments: str) -> bool:
    """Start a pull, kill it once the hub has sent so many bytes; False if it was done before."""
    process = cli.start("pull", "org/model", *arguments)
    try:
        deadline = time.monotonic() + 120
        while sum(hub.sent.values()) < target and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        if process.poll() is not None:
            return False
        process.send_signal(signal.SIGKILL)
    finally:
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    return True


def settled(hub: Hub) -> int:
    """What the hub has sent, once its threads have noticed that nobody is there."""
    while True:
        before = sum(hub.sent.values())
        time.sleep(0.05)
        if sum(hub.sent.values()) == before:
            return before


def test_ten_kills_cost_less_than_a_chunk_each(cli: Cli, hub: Hub) -> None:
    """One fetch, killed ten times at random offsets; every byte sent twice is counted."""
    chunk, rng = MIB, random.Random(5)
    files = repository(9 * MIB + 321, 7 * MIB, seed=3)
    hub.add("org/model", files)
    hub.pace_s, hub.block = 0.004, 1 << 14
    size, kills, lost = sum(map(len, files.values())), 0, 0
    while kills < 10:
        target = settled(hub) + rng.randrange(1, size // 11)
        assert kill_at(cli, hub, target, "--chunk", "1MiB"), "it finished before it was killed"
        kills += 1
        now = settled(hub) - journaled(cli)
        assert now - lost <= chunk, (kills, now - lost)
        lost = now
    hub.pace_s = 0
    record = cli.json("pull", "org/model", "--chunk", "1MiB")
    check(cli, files)
    assert record["resumed_bytes"] > size // 2
    assert settled(hub) - size <= 10 * chunk
    assert cli.json("store", "verify")["problems"] == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_kills_with_chunks_of_64_mib(cli: Cli, hub: Hub, tmp_path: Path) -> None:
    """100 fetches of 200 MiB as shipped, each killed once at a random byte and gone on with."""
    files = repository(136 * MIB + 12_345, 64 * MIB, seed=8)
    hub.add("org/model", files)
    size, rng = sum(map(len, files.values())), random.Random(11)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    lost: list[int] = []
    for number in range(100):
        hub.sent.clear()
        assert kill_at(cli, hub, rng.randrange(1, int(size * 0.95))) or number
        settled(hub)
        record = cli.json("pull", "org/model")
        assert {f["name"]: f["sha256"] for f in record["files"]} == digests
        lost.append(sum(hub.sent.values()) - size)
        assert lost[-1] <= CHUNK_BYTES
        shutil.rmtree(cli.store)
    lost.sort()
    print(f"\nrefetched: median {lost[50] / MIB:.1f} MiB, most {lost[-1] / MIB:.1f} MiB")


def test_ctrl_c_says_how_to_go_on(cli: Cli, hub: Hub) -> None:
    hub.add("org/model", repository(4 * MIB))
    hub.pace_s = 0.05
    process = cli.start("pull", "org/model")
    deadline = time.monotonic() + 60
    while sum(hub.sent.values()) < MIB // 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command to go on" in said
    assert "Traceback" not in said
    hub.pace_s = 0
    assert cli.json("pull", "org/model")["resumed_bytes"] > 0


def test_the_client_of_hubs_is_not_loaded_without_a_hub(cli: Cli, hub: Hub) -> None:
    cli.json("pull", f"org/model@{COMMIT}")
    code = (
        "import sys\n"
        "from edgekit.cli import run\n"
        f"assert run(['pull', 'org/model@{COMMIT}', '--offline', '--json']) == 0\n"
        "assert run(['deploy', 'pocket', '--dry-run', '--json']) == 0\n"
        "assert run(['store', 'verify', '--json']) == 0\n"
        "for name in ('huggingface_hub', 'httpx2', 'hf_xet'): assert name not in sys.modules, name"
    )
    import sys

    done = subprocess.run(
        [sys.executable, "-c", code],
        env=cli.environment(),
        cwd=cli.home,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_manifest_speaks_of_its_folder_alone(inside: Inside, hub: Hub) -> None:
    inside.json("pull", "org/model")
    folder = folder_of(inside)
    (folder / "config.json").write_bytes(b"{}")
    assert Checkpoints(inside.store).find("org/model", None) is None
    assert inside.run("store", "verify").returncode == 65
    # Damaged, so it is fetched again.
    sent = sum(hub.sent.values())
    inside.json("pull", "org/model")
    check(inside, FILES)
    assert sum(hub.sent.values()) > sent
    assert (folder / MANIFEST).is_file()


@pytest.mark.slow
def test_big_files_are_not_kept_in_memory(cli: Cli, hub: Hub) -> None:
    import psutil

    hub.add("org/model", {"model.safetensors": safetensors(200 * MIB)})
    process = cli.start("pull", "org/model")
    most = 0
    while process.poll() is None:
        try:
            most = max(most, psutil.Process(process.pid).memory_info().rss)
        except psutil.Error:
            break
        time.sleep(0.01)
    process.communicate()
    assert process.returncode == 0
    assert 0 < most < 200 * MIB
