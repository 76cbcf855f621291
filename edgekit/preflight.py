"""What can be known to fail before anything long begins: the address and its exposure."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edgekit.errors import (
    BusyError,
    CannotCreateError,
    ConfigError,
    DeniedError,
    EngineFailedError,
    from_foreign,
)
from edgekit.units import format_bytes

_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104


def check_endpoint(host: str, port: int, keys: Sequence[str]) -> None:
    """Refuse an address that the server would refuse later, by the server's own rule.

    Raises:
        ConfigError: others could reach it and there is no key, or it is no address of ours.
        BusyError: the port is taken.
        DeniedError: the port needs more rights.
        EngineFailedError: the server's packages are not installed.
    """
    if keys or host not in _LOOPBACK:
        _check_exposure(host, keys)
    _check_port(host, port)


def local_url(host: str, port: int) -> str:
    """Return how this machine reaches a server that listens on `host`."""
    name = _ANY.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _check_exposure(host: str, keys: Sequence[str]) -> None:
    try:
        from edgekit_server import EngineConfig, ServeConfig, ServerError
        from edgekit_server.security import check_exposure
    except ModuleNotFoundError as error:
        raise from_foreign(error) from error
    engine = EngineConfig(model_path=Path(), model_id="")
    try:
        check_exposure(ServeConfig(engine=engine, host=host, api_keys=tuple(keys)))
    except ServerError as error:
        refused = from_foreign(error)
        if refused.code == "key_required":
            refused.hint = "set EDGEKIT_API_KEY (or --api-key), or listen on 127.0.0.1"
        raise refused from error


def _check_port(host: str, port: int) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError(
            f"cannot resolve {host}: {error}",
            code="bad_host",
            hint="pass an address of this machine with --host, such as 127.0.0.1",
        ) from error
    with socket.socket(family, kind, protocol) as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen()
        except OSError as error:
            raise _refused(error, host, port) from error


def _refused(error: OSError, host: str, port: int) -> BusyError | DeniedError | ConfigError:
    if error.errno == errno.EADDRINUSE:
        return BusyError(
            f"port {port} on {host} is in use",
            code="port_in_use",
            hint=f"stop what listens there, or add --port {port + 1 if port < 65535 else 8484}",
        )
    if error.errno == errno.EACCES:
        return DeniedError(
            f"port {port} needs more rights", code="port_denied", hint="add --port 8484"
        )
    return ConfigError(
        f"cannot listen on {host}:{port}: {error.strerror}",
        code="bad_host",
        hint="pass an address of this machine with --host, such as 127.0.0.1",
    )


def check_room(folder: Path, needed_bytes: int) -> None:
    """Raise CannotCreateError when the disk of `folder` cannot take a file of this size.

    The converter checks too, but only once it has read and hashed the whole checkpoint.
    """
    from edgekit.surroundings import free_bytes, nearest_existing

    free = free_bytes(nearest_existing(folder))
    if free is not None and free < needed_bytes:
        raise CannotCreateError(
            f"{folder} has {format_bytes(free)} free, {format_bytes(needed_bytes)} are needed",
            code="disk_full",
            hint="free some space, or name another place (EDGEKIT_STORE moves the store)",
        )


def check_installed(*packages: str) -> None:
    """Raise EngineFailedError when a package of an extra is missing; nothing is imported."""
    import importlib.util

    for name in packages:
        if importlib.util.find_spec(name) is None:
            raise EngineFailedError(
                f"the Python package {name} is not installed",
                code="not_installed",
                hint="pip install 'edgekit[all]'",
            )
