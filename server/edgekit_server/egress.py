"""Nothing leaves the machine: a process that was told so refuses every way out but loopback.

The last line of defence, and an early one: an audit hook sees each name that Python code wants
resolved and each address it wants to reach, before the system does. What native code does it
cannot see; the tests watch the system calls of the whole process tree for that.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Mapping
from typing import ClassVar, Final

VARIABLE: Final = "EDGEKIT_OFFLINE"
_NAMES: Final = frozenset({"", "localhost"})
_state = {"installed": False, "forbidden": False}


class EgressError(OSError):
    """Something wanted to leave the machine. Nothing was sent."""

    exit_code: ClassVar[int] = 77
    code: ClassVar[str] = "egress_refused"
    hint: ClassVar[str] = "leave --offline out where the network may be used"


def asked() -> bool:
    """Say whether the environment forbids the network."""
    return asked_for(os.environ)


def asked_for(environment: Mapping[str, str | None]) -> bool:
    """Say whether such an environment forbids the network. Pure."""
    given = environment.get(VARIABLE) or ""
    return given.lower() in ("1", "on", "yes", "true", "t", "y")


def follow() -> None:
    """Forbid the network in this process if the environment does. For the start of a child."""
    if asked():
        forbid()


def forbid() -> None:
    """Refuse from now on to resolve names and to reach any address but this machine's own."""
    _state["forbidden"] = True
    if not _state["installed"]:
        _state["installed"] = True
        sys.addaudithook(_watch)


def allow() -> None:
    """Take `forbid` back. A hook cannot be removed, but it can be told to let things pass."""
    _state["forbidden"] = False


def stays_here(address: object) -> bool:
    """Say whether a socket address means this machine: a path, or a loopback address. Pure."""
    if isinstance(address, str | bytes):  # a path or an abstract name, AF_UNIX
        return True
    host = address[0] if isinstance(address, tuple) and address else None
    # Not an address of the internet family: netlink, vsock and their like have numbers first.
    if not isinstance(host, str):
        return isinstance(host, int)
    return host in _NAMES or _is_loopback(host)


def needs_no_question(host: object) -> bool:
    """Say whether turning a host into an address asks nobody: no name at all, or a number. Pure."""
    text = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    if text is None:
        return True
    return isinstance(text, str) and (text.lower() in _NAMES or _address(text) is not None)


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if not _state["forbidden"] or not event.startswith("socket."):
        return
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        # sendmsg on a connected socket names no address; connect was asked about it.
        if address is not None and not stays_here(address):
            raise EgressError(f"refused to send anything to {address!r}: --offline")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        if not needs_no_question(arguments[0]):
            raise EgressError(f"refused to ask for the address of {arguments[0]!r}: --offline")
    elif event in ("socket.gethostbyaddr", "socket.getnameinfo"):
        raise EgressError(f"refused to ask for the name of {arguments[0]!r}: --offline")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    found = _address(host)
    mapped = getattr(found, "ipv4_mapped", None)
    return found is not None and (mapped or found).is_loopback
