"""Watch what a tree of processes sends where: by its system calls, or by a library before libc.

Two mechanisms, so that one is always there: strace sees every system call, also those of native
code, but some containers forbid it; the preloaded library needs a C compiler and sees what goes
through libc. Both write the same lines, judged by `offences`.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

CALLS = "connect,sendto,sendmsg,sendmmsg,io_uring_setup"
_ADDRESS = re.compile(r"sa_family=(AF_\w+)([^}]*)")
_PORT = re.compile(r"sin6?_port=htons\((\d+)\)")
_HOST = re.compile(r'inet_(?:addr\(|pton\(AF_INET6, )"([^"]+)"')
_PATH = re.compile(r'sun_path=@?"([^"]*)"')
_NAME = re.compile(r'getaddrinfo\("([^"]*)"')
_OPAQUE = re.compile(r"(?:connect|sendto)\(\d+, 0x|msg_name=0x")
RESOLVERS = ("systemd/resolve", "avahi-daemon")
DNS = (53, 853, 5353, 5355)

# glibc's resolver does not come through its own exported functions, so names are taken here too.
PRELOAD = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
static void put(const char *text) {
  const char *path = getenv("EGRESS_LOG");
  int fd = path ? open(path, O_WRONLY | O_CREAT | O_APPEND, 0600) : -1;
  if (fd < 0) return;
  if (write(fd, text, strlen(text)) < 0) abort();
  close(fd);
}
static void told(const char *call, const struct sockaddr *a) {
  char line[512], host[64] = "";
  if (!a) return;
  if (a->sa_family == AF_INET) {
    const struct sockaddr_in *in = (const void *)a;
    inet_ntop(AF_INET, &in->sin_addr, host, sizeof host);
    snprintf(line, sizeof line,
      "%d %s(0, {sa_family=AF_INET, sin_port=htons(%d), sin_addr=inet_addr(\"%s\")})\n",
      (int)getpid(), call, ntohs(in->sin_port), host);
  } else if (a->sa_family == AF_INET6) {
    const struct sockaddr_in6 *in = (const void *)a;
    inet_ntop(AF_INET6, &in->sin6_addr, host, sizeof host);
    snprintf(line, sizeof line,
      "%d %s(0, {sa_family=AF_INET6, sin6_port=htons(%d), inet_pton(AF_INET6, \"%s\")})\n",
      (int)getpid(), call, ntohs(in->sin6_port), host);
  } else if (a->sa_family == AF_UNIX) {
    snprintf(line, sizeof line, "%d %s(0, {sa_family=AF_UNIX, sun_path=\"%s\"})\n",
      (int)getpid(), call, ((const struct sockaddr_un *)a)->sun_path);
  } else return;
  put(line);
}
#define REAL(type, name) static type (*real)(); if (!real) real = dlsym(RTLD_NEXT, name)
int connect(int fd, const struct sockaddr *a, socklen_t n) {
  REAL(int, "connect"); told("connect", a); return real(fd, a, n);
}
ssize_t sendto(int fd, const void *b, size_t n, int f, const struct sockaddr *a, socklen_t m) {
  REAL(ssize_t, "sendto"); told("sendto", a); return real(fd, b, n, f, a, m);
}
ssize_t sendmsg(int fd, const struct msghdr *m, int f) {
  REAL(ssize_t, "sendmsg"); told("sendmsg", m->msg_name); return real(fd, m, f);
}
int sendmmsg(int fd, struct mmsghdr *m, unsigned n, int f) {
  REAL(int, "sendmmsg");
  for (unsigned i = 0; i < n; i++) told("sendmmsg", m[i].msg_hdr.msg_name);
  return real(fd, m, n, f);
}
static void asked(const char *name) {
  char line[400];
  snprintf(line, sizeof line, "%d getaddrinfo(\"%.300s\")\n", (int)getpid(), name ? name : "");
  put(line);
}
int getaddrinfo(const char *n, const char *s, const struct addrinfo *h, struct addrinfo **r) {
  REAL(int, "getaddrinfo"); asked(n); return real(n, s, h, r);
}
struct hostent *gethostbyname(const char *n) {
  static struct hostent *(*real)(const char *);
  if (!real) real = dlsym(RTLD_NEXT, "gethostbyname");
  asked(n); return real(n);
}
"""


def strace_works() -> bool:
    """Say whether strace is here and may trace: some containers forbid it."""
    command = ["strace", "-f", "-o", os.devnull, "-e", f"trace={CALLS}", "true"]
    try:
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@cache
def mechanisms() -> tuple[str, ...]:
    """Return the ways to watch that work here, the strictest first; never none."""
    found = [*(["strace"] if strace_works() else []), *(["preload"] if _compiler() else [])]
    assert found, "neither strace nor a C compiler: the proof of no egress cannot run"
    return tuple(found)


def _compiler() -> str | None:
    return next((c for c in ("gcc", "cc", "clang") if shutil.which(c)), None)


@dataclass
class Watch:
    """Starts commands so that they and their children are watched; collects what they sent."""

    folder: Path
    mechanism: str
    logs: list[Path] = field(default_factory=list)

    def start(self, command: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
        """Start a command; the process returned is the command itself, whoever watches it."""
        log = self.folder / f"{len(self.logs)}.log"
        self.logs.append(log)
        if self.mechanism == "strace":
            # -D: the tracer is a grandchild, so that signals reach the command.
            tracer = ["strace", "-D", "-f", "--seccomp-bpf", "-s", "64", "-o", str(log)]
            command = [*tracer, "-e", f"trace={CALLS}", *command]
        else:
            log.touch()
            env = {**env, "LD_PRELOAD": str(self._library()), "EGRESS_LOG": str(log)}
        return subprocess.Popen(
            command,
            env=env,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: list[str], env: dict[str, str]) -> str:
        """Run a command to its end; return what it said."""
        process = self.start(command, env)
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
        return said

    def lines(self) -> list[str]:
        """Return all that was seen, once the tracers have written it."""
        found = []
        for log in self.logs:
            deadline = time.monotonic() + 20
            while self.mechanism == "strace" and not _finished(log):
                assert time.monotonic() < deadline, f"the tracer never finished {log}"
                time.sleep(0.02)
            found += log.read_text(errors="replace").splitlines()
        return found

    def _library(self) -> Path:
        library = self.folder / "egress.so"
        if not library.exists():
            source = self.folder / "egress.c"
            source.write_text(PRELOAD)
            compiler = _compiler()
            assert compiler is not None
            subprocess.run(
                [compiler, "-shared", "-fPIC", "-w", "-o", str(library), str(source), "-ldl"],
                check=True,
            )
        return library


def _finished(log: Path) -> bool:
    """Every process that was seen has ended."""
    text = log.read_text(errors="replace") if log.exists() else ""
    seen = {line.split(" ", 1)[0] for line in text.splitlines()}
    ended = {line.split(" ", 1)[0] for line in text.splitlines() if " +++ " in line}
    return bool(seen) and seen <= ended


def offences(lines: list[str]) -> list[str]:
    """Return the lines that leave the machine, ask for a name, or cannot be seen through. Pure."""
    return [line for line in lines if _leaves(line)]


def _leaves(line: str) -> bool:
    if "io_uring_setup(" in line or _OPAQUE.search(line):
        return True
    if match := _NAME.search(line):
        return match[1] not in ("", "localhost") and not _is_address(match[1])
    return any(_foreign(family, rest) for family, rest in _ADDRESS.findall(line))


def _foreign(family: str, rest: str) -> bool:
    if family == "AF_UNIX":
        path = _PATH.search(rest)
        return path is not None and any(name in path[1] for name in RESOLVERS)
    if family in ("AF_NETLINK", "AF_UNSPEC"):
        return False
    host, port = _HOST.search(rest), _PORT.search(rest)
    if host is None or port is None:
        return True
    found = ipaddress.ip_address(host[1])
    mapped = getattr(found, "ipv4_mapped", None)
    return not (mapped or found).is_loopback or int(port[1]) in DNS


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


LEAK = """
import ctypes, os, socket, struct, sys
_words = " ".join(sys.orig_argv)
_libc = ctypes.CDLL(None, use_errno=True)
if "-m edgekit " in _words + " ":
    # Before any guard is up.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.sendto(b"usage", ("192.0.2.1", 9))
        except OSError:
            pass
elif "edgekit.serve_child" in _words:
    # As native code would: no audit hook sees it.
    fd = _libc.socket(socket.AF_INET, socket.SOCK_DGRAM, 0)
    _libc.connect(fd, struct.pack("=HH4s8x", socket.AF_INET, socket.htons(443), bytes((192, 0, 2, 2))), 16)
    _libc.close(fd)
elif "edgekit_server.engine.worker" in _words:
    _found = ctypes.c_void_p()
    _libc.getaddrinfo(b"updates.edgekit.invalid", b"443", None, ctypes.byref(_found))
"""  # noqa: E501
"""A build that leaks: its command at once, its server and its engine past any hook."""

TRAP = """
import os
with open(os.environ["EGRESS_TRAPS"], "a") as file:
    file.write(__name__ + "\\n")
raise ImportError(__name__ + " is loaded although the network is forbidden")
"""
"""In the place of packages that must not even be loaded."""

DISKCACHE = """
import os
class _Never:
    def __init__(self, *arguments, **options):
        with open(os.environ["EGRESS_TRAPS"], "a") as file:
            file.write("diskcache is used\\n")
        raise RuntimeError("diskcache is used")
Cache = FanoutCache = DjangoCache = Deque = Index = Disk = JSONDisk = _Never
"""
"""In the place of diskcache: importing it is well, constructing anything of it is not."""


def traps(folder: Path, *, leaky: bool) -> Path:
    """Return a folder to put first on a path: what must not be loaded, and perhaps a leak."""
    place = folder / "traps"
    place.mkdir(exist_ok=True)
    for name in ("huggingface_hub", "httpx2", "hf_xet", "requests"):
        (place / f"{name}.py").write_text(TRAP)
    (place / "diskcache.py").write_text(DISKCACHE)
    leak = place / "sitecustomize.py"
    leak.write_text(LEAK if leaky else "")
    return place
