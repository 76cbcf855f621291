"""Nothing leaves the machine: the system calls of the whole tree say so, and a guard refuses."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import httpx
import pytest

from edgekit_server import egress as guard
from tests.support.cli import ROOT, Cli, free_port, until
from tests.support.egress import Watch, mechanisms, offences, traps

REQUESTS = 200
PACKAGES = ("edgekit", "profiles/edgekit_profiles", "quantize/edgekit_quantize")
SOURCES = [
    file
    for package in (*PACKAGES, "server/edgekit_server")
    for file in sorted((ROOT / package).rglob("*.py"))
]


def proof(cli: Cli, watch: Watch, *, leaky: bool, requests: int) -> list[str]:
    """Create, check, install, deploy, ask; return the calls that left the machine.

    The bundle is made by one store and installed into another. An installation needs no
    `--offline`: nothing in it may want the network at all.
    """
    maker = Cli(cli.home, {**cli.env, "EDGEKIT_STORE": str(cli.home / "maker")})
    place = traps(watch.folder, leaky=leaky)
    bundle, port = watch.folder / "p.edgekit", free_port()

    def env_of(one: Cli) -> dict[str, str]:
        env = one.environment()
        path = os.pathsep.join((str(place), env["PYTHONPATH"]))
        return {**env, "PYTHONPATH": path, "EGRESS_TRAPS": str(watch.folder / "trapped")}

    create = maker.command("bundle", "create", "pocket:Q8_0", "--output", bundle, "--offline")
    watch.run(create, env_of(maker))
    watch.run(cli.command("bundle", "check", bundle), env_of(cli))
    watch.run(cli.command("bundle", "install", bundle), env_of(cli))
    deploy = ("deploy", "pocket:Q8_0", "--offline", "--no-measure", "--port", str(port))
    server = watch.start(cli.command(*deploy), env_of(cli))
    try:
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(trust_env=False, timeout=30) as client:
            until(lambda: server.poll() is not None or announced(cli, port), "the server", 90)
            assert server.poll() is None, server.communicate()[0]
            with ThreadPoolExecutor(4) as pool:
                assert set(pool.map(lambda n: ask(client, url, n), range(requests))) == {200}
    finally:
        server.terminate()
        said, _ = server.communicate(timeout=60)
    assert server.returncode in (0, 130, 143), said
    trapped = watch.folder / "trapped"
    assert not trapped.exists(), trapped.read_text()
    lines = watch.lines()
    # The watch itself works: the command asked its own server for a token.
    assert any(f"htons({port})" in line for line in lines)
    return offences(lines)


def announced(cli: Cli, port: int) -> bool:
    """The command is through: it asked its server for a token and says where it is."""
    return any(f":{port}" in file.read_text() for file in (cli.data / "running").glob("*.json"))


def ask(client: httpx.Client, url: str, number: int) -> int:
    if number % 10 == 0:
        return client.get(f"{url}/licence").status_code
    if number % 2:
        body = {"messages": [{"role": "user", "content": f"add {number}"}], "max_tokens": 2}
        return client.post(f"{url}/v1/chat/completions", json=body).status_code
    body = {"prompt": f"def f{number}(", "max_tokens": 2}
    return client.post(f"{url}/v1/completions", json=body).status_code


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    made = Cli(tmp_path_factory.mktemp("egress"))
    made.config.mkdir()
    (made.config / "trust.toml").write_text('signature = "warn"\n')
    # Addresses of proxies are what a leak would go to.
    return replace(made, env={"HTTPS_PROXY": "http://192.0.2.9:3128"})


def test_nothing_leaves_the_machine(cli: Cli, tmp_path: Path) -> None:
    watch = Watch(tmp_path, mechanisms()[0])
    assert proof(cli, watch, leaky=False, requests=REQUESTS) == []


def test_a_leaky_build_does_not_pass(cli: Cli, tmp_path: Path) -> None:
    """The command, its server and its engine each leak in their own way; each is found."""
    watch = Watch(tmp_path, mechanisms()[0])
    found = "\n".join(proof(cli, watch, leaky=True, requests=5))
    assert "192.0.2.1" in found
    assert "192.0.2.2" in found
    assert "updates.edgekit.invalid" in found or re.search(r"htons\(53\)|resolve", found)


WAYS_OUT = {
    "connect": 's.connect(("192.0.2.1", 443))',
    "connect6": 'socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).connect(("2001:db8::1", 9))',
    "sendto": 's.sendto(b"x", ("192.0.2.1", 9))',
    "sendmsg": 's.sendmsg([b"x"], [], 0, ("192.0.2.1", 9))',
    "resolver": 's.connect(("127.0.0.1", 53))',
    "name": 'socket.getaddrinfo("updates.edgekit.invalid", 443)',
}
STAYS = (
    's.connect(("127.0.0.1", 9))',
    'a, b = socket.socketpair(); a.send(b"x")',
    'socket.getaddrinfo("127.0.0.1", 80)',
    "socket.getaddrinfo(None, 80)",
)
SCRIPT = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
try:
    {}
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize("mechanism", mechanisms())
@pytest.mark.parametrize("way", WAYS_OUT.values(), ids=WAYS_OUT.keys())
def test_each_way_out_is_seen(way: str, mechanism: str, tmp_path: Path) -> None:
    watch = Watch(tmp_path, mechanism)
    watch.run([sys.executable, "-I", "-c", SCRIPT.format(way)], dict(os.environ))
    assert offences(watch.lines())


@pytest.mark.parametrize("mechanism", mechanisms())
def test_what_stays_is_no_offence(mechanism: str, tmp_path: Path) -> None:
    watch = Watch(tmp_path, mechanism)
    script = "\n".join(SCRIPT.format(way) for way in STAYS)
    watch.run([sys.executable, "-I", "-c", script], dict(os.environ))
    assert offences(watch.lines()) == []


def test_calls_that_cannot_be_read_are_offences() -> None:
    assert offences(["7 connect(3, 0x7ffd12, 16) = 0", "7 io_uring_setup(8, {}) = 4"])
    assert offences(['7 connect(3, {sa_family=AF_UNIX, sun_path="/run/systemd/resolve/io"}, 9)'])
    assert offences(["7 connect(3, {sa_family=AF_VSOCK, svm_cid=2, svm_port=1}, 16) = 0"])
    assert not offences(['7 connect(3, {sa_family=AF_UNIX, sun_path="/run/nscd/socket"}, 9)'])


GUARDED = """
import socket
from edgekit_server import egress
egress.forbid()
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
try:
    {}
except egress.EgressError as error:
    print("refused:", error)
else:
    print("let through")
"""


def guarded(way: str) -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "server", ROOT)))}
    command = [sys.executable, "-c", GUARDED.format(way)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "way",
    [*(w for k, w in WAYS_OUT.items() if k != "resolver"), 'socket.gethostbyaddr("192.0.2.1")'],
)
def test_the_guard_refuses_each_way_out(way: str) -> None:
    assert guarded(way).startswith("refused: refused to")


@pytest.mark.parametrize("way", STAYS)
def test_the_guard_lets_the_machine_talk_to_itself(way: str) -> None:
    assert guarded(way).startswith("let through")


@pytest.mark.parametrize(
    ("address", "stays"),
    [
        (("127.0.0.1", 80), True),
        (("127.8.9.1", 80), True),
        (("::1", 80, 0, 0), True),
        (("::ffff:127.0.0.1", 80, 0, 0), True),
        (("fe80::1%lo", 80, 0, 1), False),
        (("localhost", 80), True),
        ("/run/a.sock", True),
        (b"\0abstract", True),
        ((0, 0), True),
        (("10.0.0.1", 80), False),
        (("::ffff:10.0.0.1", 80, 0, 0), False),
        (("0.0.0.0.example.com", 80), False),
        (("127.0.0.1.example.com", 80), False),
        ((), False),
        (None, False),
    ],
)
def test_which_addresses_are_this_machine(address: object, stays: bool) -> None:
    assert guard.stays_here(address) is stays


@pytest.mark.parametrize(
    ("host", "quiet"),
    [
        *((None, True), ("", True), ("::1", True), (b"10.0.0.1", True), ("LOCALHOST", True)),
        *(("huggingface.co", False), (b"hub", False), ("127.1", False), (3, False)),
    ],
)
def test_which_names_ask_nobody(host: object, quiet: bool) -> None:
    assert guard.needs_no_question(host) is quiet


@pytest.mark.parametrize(
    ("environment", "command"),
    [
        ({}, ("pull", "mistral-3-small", "--offline")),
        ({"EDGEKIT_OFFLINE": "1"}, ("pull", "mistral-3-small")),
        ({"EDGEKIT_OFFLINE": "1"}, ("deploy", "mistral-3-small:Q2_K", "--no-stay")),
        ({}, ("bundle", "create", "mistral-3-small:Q2_K", "--offline", "--device", "a10")),
    ],
)
def test_what_would_be_fetched_is_an_error_that_helps(
    environment: dict[str, str], command: tuple[str, ...], tmp_path: Path
) -> None:
    done = Cli(tmp_path, environment).run(*command)
    assert done.returncode == 66, done.stderr
    assert "edgekit pull" in done.stderr
    assert "bundle create" in done.stderr


def test_a_command_cuts_off_itself_only() -> None:
    code = (
        "import os, socket\n"
        "from edgekit.cli import run\n"
        "assert run(['pull', 'mistral-3-small', '--offline']) == 66\n"
        "assert 'HF_HUB_OFFLINE' not in os.environ\n"
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', 9))\n"
        "from edgekit_server import egress\n"
        "assert not egress._state['forbidden']\n"
    )
    paths = [ROOT, ROOT / "server", ROOT / "quantize", ROOT / "profiles"]
    env = {k: v for k, v in os.environ.items() if k != "EDGEKIT_OFFLINE"}
    env["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Who may speak to a network at all, and to whom. Anything else here is telemetry until explained.
NETWORK = {
    "edgekit/connect/selftest.py": "this machine's endpoint, asked by `connect`",
    "edgekit/connect/server.py": "this machine's endpoint, asked by `connect`",
    "edgekit/bundle/registry.py": "the registry that `push` and `pull` were pointed at",
    "edgekit/bundle/transfer.py": "the registry that `push` and `pull` were pointed at",
    "edgekit/cli/bench.py": "the endpoint that `bench` measures",
    "edgekit/fetch.py": "the hub or mirror that `pull` was pointed at",
    "edgekit/fetch_http.py": "the hub or mirror that `pull` was pointed at",
    "edgekit/hub_client.py": "the hub or mirror that `pull` was pointed at",
    "edgekit/hub.py": "the hub or mirror that `pull` was pointed at",
    "edgekit/latency.py": "the endpoint that `bench` measures",
    "edgekit/latency_client.py": "the endpoint that `bench` measures",
    "edgekit/latency_prompts.py": "the endpoint that `bench` measures",
    "edgekit/serving.py": "the deployment's own server",
    "edgekit/switch.py": "the deployment's own server",
    "edgekit/licence.py": "the host's name, for the record of an acceptance",
    "edgekit/preflight.py": "is the port free?",
    "edgekit/surroundings.py": "is the port free?",
    "server/edgekit_server/app.py": "the listening socket",
    "server/edgekit_server/client.py": "the pair of sockets to the engine",
    "server/edgekit_server/engine/intake.py": "the pair of sockets to the engine",
    "server/edgekit_server/engine/spawn.py": "the pair of sockets to the engine",
    "server/edgekit_server/engine/wire.py": "the pair of sockets to the engine",
    "server/edgekit_server/engine/worker.py": "the pair of sockets to the engine",
}
SPEAKS = {
    "socket", "ssl", "http", "httpx", "httpx2", "urllib3", "requests", "aiohttp", "smtplib",
    "ftplib", "telnetlib", "xmlrpc", "webbrowser", "websockets", "grpc", "huggingface_hub", "oras",
    "sentry_sdk", "posthog", "opentelemetry", "analytics", "segment", "mixpanel",
}  # fmt: skip


@cache
def nodes_of(file: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(file.read_text())))


def speakers(file: Path) -> set[str]:
    found = set()
    for node in nodes_of(file):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] in SPEAKS or name.startswith("urllib.request"):
                found.add(name.split(".")[0])
    return found


def test_every_file_that_can_speak_to_a_network_is_known() -> None:
    speaking = {file.relative_to(ROOT).as_posix() for file in SOURCES if speakers(file)}
    assert speaking <= NETWORK.keys(), speaking - NETWORK.keys()


def test_no_telemetry_and_no_update_check() -> None:
    words = re.compile(r"telemetry|analytics|phone.?home|update.?check|check.?for.?updates", re.I)
    # These switch off what libraries of children would do.
    off = {"HF_HUB_DISABLE_TELEMETRY", "PIP_DISABLE_PIP_VERSION_CHECK"}
    for file in SOURCES:
        for node in nodes_of(file):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and text not in off:
                assert not words.search(text), (file, text)


def test_pages_and_reports_load_nothing_from_elsewhere() -> None:
    web = sorted((ROOT / "server" / "edgekit_server" / "web").iterdir())
    loads = re.compile(r"""(?:src|href|@import|url\(|fetch\(|import)\s*=?\s*["'(]?(https?:)?//""")
    for file in web:
        assert not loads.search(file.read_text()), file


def test_llama_disk_cache_is_out_of_reach() -> None:
    """Holds the statement about CVE-2025-69872; the run above proves that none is constructed."""
    for file in SOURCES:
        text = file.read_text()
        assert "LlamaDiskCache" not in text, file
        assert "LlamaCache" not in text, file
        for node in nodes_of(file):
            if isinstance(node, ast.Import):
                assert "diskcache" not in [alias.name.split(".")[0] for alias in node.names], file
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert (node.module or "").split(".")[0] != "diskcache", file
