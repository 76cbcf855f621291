"""The CycloneDX 1.6 schema, from the reference library, with what it refers to."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import cyclonedx.schema
from jsonschema import Draft7Validator
from referencing import Registry, Resource

BASE = "http://cyclonedx.org/schema"
FOLDER = Path(cyclonedx.schema.__file__).parent / "_res"


def _load(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.SNAPSHOT.schema.json").read_text(encoding="utf-8"))


@cache
def validator() -> Draft7Validator:
    """Return what checks a bill; nothing is asked of a network."""
    # The library renames the files and what refers to them, not their ids.
    registry: Registry[Any] = Registry().with_resources(
        [
            (f"{BASE}/{name}.SNAPSHOT.schema.json", Resource.from_contents(_load(name)))
            for name in ("spdx", "jsf-0.82")
        ]
    )
    return Draft7Validator(_load("bom-1.6"), registry=registry)
