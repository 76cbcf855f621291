"""How a place in a registry is written: `oci://HOST[:PORT]/REPOSITORY[:TAG|@sha256:…]`. Pure.

Sources: OCI distribution specification 1.1 (names, tags), Docker's credential file (`auths`).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from edgekit.errors import UsageError

SCHEMES: Final = ("oci://", "oci+http://")
_ADDRESS: Final = re.compile(
    r"(?P<host>\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+)(?P<port>:\d{1,5})?"
    r"/(?P<repository>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)"
    r"(?::(?P<tag>\w[\w.-]{0,127})|@(?P<digest>sha256:[0-9a-f]{64}))?",
    re.ASCII,
)
_CHALLENGE: Final = re.compile(r'(\w+)="([^"]*)"')
_LOOPBACK: Final = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, slots=True)
class Address:
    """A repository of a registry and what in it is meant: a tag or a digest."""

    endpoint: str
    repository: str
    reference: str

    @property
    def host(self) -> str:
        return self.endpoint.partition("://")[2]

    def url(self, path: str) -> str:
        """Return the API's address of something in the repository."""
        return f"{self.endpoint}/v2/{self.repository}/{path}"

    def __str__(self) -> str:
        between = "@" if self.reference.startswith("sha256:") else ":"
        return f"{self.host}/{self.repository}{between}{self.reference}"


def is_address(text: str) -> bool:
    """Say whether a text means a place in a registry."""
    return text.startswith(SCHEMES)


def parse_address(text: str) -> Address:
    """Read an address. TLS everywhere but on this machine and behind `oci+http://`.

    Raises UsageError (`bad_address`).
    """
    scheme, _, rest = text.partition("://")
    match = _ADDRESS.fullmatch(rest)
    if match is None or scheme not in ("oci", "oci+http") or ".." in match["repository"]:
        raise UsageError(
            f"{text!r} is no place in a registry",
            code="bad_address",
            hint="write oci://HOST[:PORT]/REPOSITORY[:TAG]; oci+http:// for one without TLS",
        )
    plain = scheme == "oci+http" or match["host"] in _LOOPBACK
    host = match["host"] + (match["port"] or "")
    reference = match["tag"] or match["digest"] or "latest"
    return Address(f"{'http' if plain else 'https'}://{host}", match["repository"], reference)


def parse_challenge(header: str) -> tuple[str, Mapping[str, str]]:
    """Return the scheme (in small letters) and the parameters of a `WWW-Authenticate` header."""
    scheme, _, rest = header.strip().partition(" ")
    return scheme.lower(), dict(_CHALLENGE.findall(rest))


def find_login(host: str, config: str) -> str | None:
    """Return `user:password` for a host out of the text of Docker's config.json, None for none."""
    try:
        auths = json.loads(config).get("auths", {})
        for key in (host, f"https://{host}", f"http://{host}"):
            if isinstance(found := auths.get(key, {}).get("auth"), str):
                return base64.b64decode(found, validate=True).decode()
    except (ValueError, AttributeError, binascii.Error):
        return None
    return None
