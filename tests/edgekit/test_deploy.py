"""`deploy` on real weights: the endpoint answers, the report is kept, nothing outlives it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest

from edgekit import running
from edgekit.catalogue import find_device, find_model
from edgekit.cli.output import StepLines
from edgekit.deploy import FRONT_BYTES, Proof, head, informed, obtain, predicted
from edgekit.errors import BusyError, CannotCreateError, ConfigError, DeniedError, EngineFailedError
from edgekit.fit import choose, device_from_machine
from edgekit.machine import Canary, Cpu, Engine, Host, Machine, Memory
from edgekit.plan import Plan, make_plan
from edgekit.preflight import check_endpoint, check_installed, check_room, local_url
from edgekit.serve_child import from_request, to_request
from edgekit.store import Store
from edgekit_server import EngineConfig, ServeConfig
from edgekit_server.config import Adapter
from tests.support.cli import POCKET, Cli, free_port, until

POSIX = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
XEON = Machine(
    Host(
        os="linux",
        arch="x86_64",
        cpu=Cpu(model="Xeon", physical_cores=2, flags=("avx2", "avx512f", "amx_int8")),
        memory=Memory(16 * 1024**3, 12 * 1024**3, None, 20.0),
    ),
    engine=Engine("0.3.36", ("CPU",), False),
)


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds pocket as Q4_K_M."""
    root = tmp_path_factory.mktemp("store")
    plan = plan_on("this", root, filetype="Q4_K_M")
    file = obtain(plan, Store(root), StepLines(quiet=True))
    assert plan_on("this", root, filetype="Q4_K_M").steps[1].done
    assert hashlib.sha256(file.read_bytes()).hexdigest() == file.stem
    return root


@pytest.fixture
def cli(tmp_path: Path, shared_store: Path) -> Cli:
    return Cli(tmp_path, {"EDGEKIT_STORE": str(shared_store)})


def plan_on(
    device_name: str,
    tmp_path: Path,
    model: str = "pocket",
    users: int = 4,
    filetype: str | None = None,
) -> Plan:
    device = device_from_machine(XEON) if device_name == "this" else find_device(device_name)
    card = find_model(model)
    choice = choose(card, device, users=users, filetype=filetype)
    return make_plan(card, device, choice, Store(tmp_path), host="127.0.0.1", port=8484)


@contextmanager
def deployed(cli: Cli, *more: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, object]]]:
    """A deployment of pocket that was announced as ready."""
    process = cli.start(
        "deploy", "pocket:Q4_K_M", "--port", str(free_port()), "--no-measure", "--json", *more
    )
    assert process.stdout is not None
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if line == "}\n":
                break
        record = json.loads("".join(lines) or "{}")
        if "error" in record or not record:
            raise AssertionError(record, process.communicate())
        yield process, record
    finally:
        process.kill()
        process.communicate()


def test_a_deployment_answers_and_ends_in_order(cli: Cli) -> None:
    with deployed(cli) as (process, record):
        assert record["schema"] == "edgekit.deploy/1"
        assert (record["model"], record["filetype"]) == ("pocket", "Q4_K_M")
        body = {"model": "pocket", "messages": [{"role": "user", "content": "hi"}]}
        answer = httpx.post(
            f"{record['url']}/chat/completions", json=body | {"max_tokens": 3}, timeout=60
        )
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] >= 1
        shown = httpx.get(f"{record['url']}/status/report").json()
        assert (shown["schema"], shown["model"], shown["rows"]) == ("edgekit.bench/1", "pocket", [])
        assert shown["predicted"]["rows"]
        files = list((cli.data / "running").iterdir())
        assert [f.name for f in files] == [f"{record['pid']}.json"]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        assert list((cli.data / "running").iterdir()) == []
        assert not psutil.pid_exists(int(str(record["pid"])))


@POSIX
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_no_child_outlives_a_deployment(sent: signal.Signals, cli: Cli) -> None:
    with deployed(cli) as (process, _):
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 2
        process.send_signal(sent)
        process.wait(timeout=30)
        until(lambda: not any(c.is_running() for c in children), "the end of the children", 30)


@POSIX
def test_a_server_that_dies_is_a_failure_of_the_deployment(cli: Cli) -> None:
    with deployed(cli) as (process, record):
        os.kill(int(str(record["pid"])), signal.SIGKILL)
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 70
        error = json.loads(out)["error"]
        assert error["code"] == "server_died"
        assert "SIGKILL" in error["message"]


def test_keys_come_from_the_environment_and_stay_out_of_sight(cli: Cli) -> None:
    secret = "a-secret-key"
    keyed = Cli(cli.home, {**cli.env, "EDGEKIT_API_KEY": secret})
    with deployed(keyed, "--host", "0.0.0.0") as (process, record):
        models = f"{record['url']}/models"
        assert httpx.get(models).status_code == 401
        headers = {"Authorization": f"Bearer {secret}"}
        assert httpx.get(models, headers=headers).status_code == 200
        family = [process.pid, *(c.pid for c in psutil.Process(process.pid).children(True))]
        assert all(secret not in " ".join(psutil.Process(pid).cmdline()) for pid in family)
        assert (
            secret
            not in (cli.data / "logs").joinpath(f"pocket-{httpx.URL(models).port}.log").read_text()
        )


def test_the_report_of_a_measured_deployment(cli: Cli) -> None:
    port = str(free_port())
    measured = ("--load", "1,2", "--requests", "2", "--no-stay")
    done = cli.run("deploy", "pocket:Q4_K_M", "--port", port, *measured)
    assert done.returncode == 0, done.stderr
    labels = [line.split()[0] for line in done.stdout.splitlines() if line[:1].isalpha()]
    assert labels.index("Ceiling") < labels.index("Latency,")
    assert "store hit: Q4_K_M" in done.stdout
    assert all(len(line) <= 100 for line in done.stdout.splitlines() if "/" not in line)
    (receipt,) = (cli.data / "reports").glob("*.json")
    record = json.loads(receipt.read_text())
    assert record["schema"] == "edgekit.receipt/1"
    assert record["memory"]["engine"]["weights_bytes"]
    bench = record["bench"]
    assert [row["users"] for row in bench["rows"]] == [1, 2]
    assert all(row["errors"] == 0 for row in bench["rows"])
    assert bench["predicted"]["rows"][0]["decode_tok_s"]["value"] > 0
    assert bench["plan_digest"] == record["digest"]
    quality = record["quality"]
    assert quality["good"] is True
    assert 0 < quality["divergence"]["kl"] < quality["limit_kl"]
    assert len(quality["drifts"]) == 24 - quality["unchanged"]
    assert "canaries unchanged" in bench["method"]["Quantization"]
    used, planned = bench["peak_memory_bytes"], bench["predicted"]["peak_memory_bytes"]
    assert 0.5 < used / planned < 2
    (page,) = (cli.data / "reports").glob("*.html")
    assert str(page) in done.stdout
    assert page.read_text().startswith("<!doctype html>")


def test_the_first_deployment_tunes_and_the_second_remembers(cli: Cli) -> None:
    tuned = Cli(cli.home, {**cli.env, "EDGEKIT_TUNE": "on"})
    arguments = ("deploy", "pocket:Q4_K_M", "--users", "2", "--ctx", "2048", "--no-stay")
    first = tuned.json(*arguments, "--port", str(free_port()), "--no-measure")
    found = first["tuning"]
    assert found["schema"] == "edgekit.autotune/1"
    assert found["rows"][0]["setting"]["flash_attn"] is None
    assert found["gain"] >= 1
    assert set(found["reasons"]) >= {"flash_attn", "n_threads", "n_ubatch", "extra_bufts"}
    measured = ("--load", "1", "--requests", "1")
    done = tuned.run(*arguments, "--port", str(free_port()), *measured)
    assert done.returncode == 0, done.stderr
    (receipt,) = (tuned.data / "reports").glob("*.json")
    record = json.loads(receipt.read_text())
    # Figures that scattered are not kept, and this machine may be busy.
    kept = "busy" not in (found["note"] or "")
    assert record["tuning"]["cached"] is kept
    if kept:
        assert "(kept)" in done.stdout
        assert record["tuning"]["setting"] == found["setting"]
    basis = record["bench"]["predicted"]["rows"][0]["decode_tok_s"]["basis"]
    assert basis == "measured"
    assert "Engine settings" in record["bench"]["method"]
    untuned = cli.json(*arguments, "--port", str(free_port()), "--no-measure")
    assert untuned["tuning"] is None


def test_tuning_is_a_step_of_the_plan(cli: Cli) -> None:
    def steps(*more: str) -> list[str]:
        tuned = Cli(cli.home, {**cli.env, "EDGEKIT_TUNE": "on"})
        plan = tuned.json("deploy", "pocket", "--dry-run", *more)["plan"]
        return [step["kind"] for step in plan["steps"]]

    assert steps()[2:5] == ["verify", "tune", "serve"]
    assert "tune" not in steps("--no-tune")


def test_bench_knows_a_deployment_by_its_model(cli: Cli) -> None:
    with deployed(cli) as (_, record):
        page = cli.home / "report.html"
        load = ("--users", "1", "--requests", "1", "--prompt-tokens", "32", "--output-tokens", "4")
        bench = cli.json("bench", "pocket", *load, "--html", page)
        assert (bench["filetype"], bench["plan_digest"]) == ("Q4_K_M", record["plan_digest"])
        assert bench["ceiling"]["tok_s"] > 0
        assert bench["peak_memory_bytes"] > 0
        assert page.stat().st_size > 1000
        by_url = cli.run("bench", str(record["url"]), *load)
        assert by_url.stdout.splitlines()[1].startswith("Ceiling ")
        assert "tok/s for one user" in by_url.stdout.splitlines()[1]


def test_a_folder_of_ones_own_under_a_name_of_its_own(cli: Cli) -> None:
    arguments = ("deploy", "mine:Q4_0", "--source", str(POCKET), "--port", str(free_port()))
    ready = cli.json(*arguments, "--no-measure", "--no-stay")
    assert (ready["model"], ready["store_hit"]) == ("mine", False)


def test_predictions_for_more_users_than_sequences(tmp_path: Path) -> None:
    rows = predicted(plan_on("a10", tmp_path, "mistral-3-small", users=2), (1, 2, 4)).rows
    one, two, four = (row.decode_tok_s for row in rows)
    assert one is not None
    assert two is not None
    assert four is not None
    assert one.value < two.value
    assert four.value == two.value
    assert (rows[1].ttft_ms is None, rows[2].ttft_ms) == (False, None)


def test_memory_is_predicted_where_it_can_be_measured(tmp_path: Path) -> None:
    here = plan_on("this", tmp_path)
    # A repacked file stays mapped as well: what is resident is more than what was allocated.
    plan = here.choice.plan
    assert plan.resident == plan.total + plan.mapped
    assert predicted(here, (1,)).peak_memory_bytes == plan.resident + FRONT_BYTES
    assert predicted(plan_on("a10", tmp_path), (1,)).peak_memory_bytes is None


def test_a_faulty_build_is_predicted_to_be_slower(tmp_path: Path) -> None:
    plan = plan_on("this", tmp_path)
    works = informed(plan, XEON, Proof(Canary(True, True, "decoded"), None))
    faulty = informed(plan, XEON, Proof(Canary(True, False, "SIGSEGV"), None))
    assert works.device.family.id == "cpu-amx"
    assert faulty.device.family.id == "cpu-avx512"
    assert informed(plan, None, Proof(Canary(True, False, "SIGSEGV"), None)) is plan
    gpu = replace(XEON, accelerators=())
    assert informed(plan, gpu, Proof(Canary(True, True, ""), None)).choice is plan.choice


def test_a_deployment_is_found_while_its_process_lives(tmp_path: Path) -> None:
    record = head(plan_on("this", tmp_path))
    here = running.Running(os.getpid(), "http://127.0.0.1:8484", record)
    with running.announced(tmp_path / "r", here):
        for wanted in ("pocket", "localhost:8484", "http://127.0.0.1:8484/v1"):
            assert running.find(tmp_path / "r", wanted) == here
        for wanted in ("other", "http://127.0.0.1:8485/v1", "http://[", "http://127.0.0.1:99999"):
            assert running.find(tmp_path / "r", wanted) is None
        gone = subprocess.Popen(["true"])
        gone.wait()
        left = replace(here, pid=gone.pid, head=replace(record, model="left"))
        with running.announced(tmp_path / "r", left):
            assert running.find(tmp_path / "r", "left") is None
        (tmp_path / "r" / "1.json").write_text("{")
        # The id of a process that ended long ago, given to this one since.
        os.utime(tmp_path / "r" / f"{os.getpid()}.json", (1e9, 1e9))
        assert running.find(tmp_path / "r", "pocket") is None
        os.utime(tmp_path / "r" / f"{os.getpid()}.json")
        assert running.find(tmp_path / "r", "pocket") == here
    assert running.find(tmp_path / "none", "pocket") is None


def test_settings_reach_the_server_as_they_are() -> None:
    engine = EngineConfig(
        Path("/a b/ü\udcff.gguf"), "m", n_ctx=512, flash_attn=None, n_threads=3,
        disk_cache=Path("/c"), adapters=(Adapter("a", Path("/l.gguf"), 0.5),),
    )  # fmt: skip
    config = ServeConfig(engine, host="::1", port=1, api_keys=("k",), aliases=("a", "b"))
    assert from_request(json.loads(json.dumps(to_request(config)))) == config


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
        ("box.lan", "http://box.lan:80"),
    ],
)
def test_the_address_to_ask(host: str, url: str) -> None:
    assert local_url(host, 80) == url


def test_a_port_that_needs_more_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    # Tests may run as root, to whom no port is denied.
    monkeypatch.setattr(socket.socket, "bind", bind)
    with pytest.raises(DeniedError) as caught:
        check_endpoint("127.0.0.1", 80, [])
    assert caught.value.exit_code == 77


def test_a_disk_that_is_too_small_is_known_before_the_weights_are_read(tmp_path: Path) -> None:
    check_room(tmp_path / "not" / "there" / "yet", 1)
    with pytest.raises(CannotCreateError) as caught:
        check_room(tmp_path / "not" / "there" / "yet", 10**18)
    assert (caught.value.exit_code, caught.value.code) == (73, "disk_full")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_its_cure() -> None:
    check_installed("numpy", "llama_cpp")
    with pytest.raises(EngineFailedError, match="no_such_package") as caught:
        check_installed("no_such_package")
    assert caught.value.hint == "pip install 'edgekit[all]'"


def test_addresses_are_refused_before_anything_begins() -> None:
    check_endpoint("127.0.0.1", free_port(), [])
    check_endpoint("0.0.0.0", free_port(), ["key"])
    with pytest.raises(ConfigError) as caught:
        check_endpoint("0.0.0.0", free_port(), [])
    assert caught.value.code == "key_required"
    with pytest.raises(ConfigError, match="API key"):
        check_endpoint("127.0.0.1", free_port(), ["not a key"])
    with pytest.raises(ConfigError, match="resolve"):
        check_endpoint("no-such-host.invalid", free_port(), ["key"])
    with socket.create_server(("127.0.0.1", 0)) as holder, pytest.raises(BusyError):
        check_endpoint("127.0.0.1", holder.getsockname()[1], [])
