"""Vulnerabilities that scanners will find in what we install, and why they do not matter here.

Twice: as OpenVEX beside the index, and inside the bill of materials. The statements are facts of
`advisories.toml`, each held by a test. Source: OpenVEX specification 0.2.0.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from edgekit import __version__


@cache
def statements() -> tuple[Mapping[str, str], ...]:
    """Return the statements as they stand in `advisories.toml`."""
    text = files("edgekit_profiles").joinpath("advisories.toml").read_text(encoding="utf-8")
    return tuple(tomllib.loads(text)["statement"])


def openvex(versions: Mapping[str, str]) -> dict[str, Any]:
    """Return the OpenVEX document. `versions` are those of the packages that are carried. Pure."""
    found = statements()
    return {
        "@context": "https://openvex.dev/ns/v0.2.0",
        "@id": f"https://openvex.dev/docs/edgekit-{__version__}",
        "author": "edgekit",
        "timestamp": max(s["date"] for s in found),
        "version": 1,
        "statements": [
            {
                "vulnerability": {"name": s["id"], "description": s["what"]},
                "timestamp": s["date"],
                "products": [
                    {
                        "@id": f"pkg:pypi/edgekit@{__version__}",
                        "subcomponents": [{"@id": _purl(s["package"], versions)}],
                    }
                ],
                "status": "not_affected",
                "justification": s["openvex"],
                "impact_statement": f"{s['why']} Held by {s['proof']}.",
            }
            for s in found
        ],
    }


def vulnerabilities(carried: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return CycloneDX's form of the statements about packages that are carried.

    `carried`: references within the bill, by package. Pure.
    """
    return [
        {
            "id": s["id"],
            "source": {"name": "NVD", "url": f"https://nvd.nist.gov/vuln/detail/{s['id']}"},
            "description": s["what"],
            "analysis": {
                "state": "not_affected",
                "justification": s["cyclonedx"],
                "detail": f"{s['why']} Held by {s['proof']}.",
            },
            "affects": [{"ref": carried[s["package"]]}],
        }
        for s in statements()
        if s["package"] in carried
    ]


def _purl(package: str, versions: Mapping[str, str]) -> str:
    return f"pkg:pypi/{package}" + (f"@{versions[package]}" if package in versions else "")
