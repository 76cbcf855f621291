"""What a bundle is made of, for scanners: a CycloneDX 1.6 bill of materials with model cards.

Built from the layout alone, so that it says what is in it and nothing else. Without times, and
with a serial number that follows from the content: the same bundle gives the same bytes.
Source: CycloneDX 1.6 JSON schema (ECMA-424).
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final

from edgekit import __version__
from edgekit.bundle.documents import CONVERSION, EVALUATION, LICENCE
from edgekit.bundle.layout import FILE_PATH, Descriptor, Layout, encode
from edgekit.bundle.model import BundledModel, models_of
from edgekit.errors import BadDataError, from_os

SCHEMA_URL: Final = "http://cyclonedx.org/schema/bom-1.6.schema.json"
_WHEEL: Final = re.compile(r"(?P<name>[A-Za-z0-9._]+)-(?P<version>[^-]+)-.*\.whl")
_NAMESPACE: Final = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")  # RFC 9562's, for URLs


def bill_of_materials(layout: Layout) -> dict[str, Any]:
    """Return the bill of a layout whose index is written. Raises BadDataError."""
    from edgekit.bundle.vex import vulnerabilities

    models = [_model(layout, model) for model in models_of(layout)]
    wheels = _wheels(layout)
    components = [*models, *wheels]
    root = {"type": "application", "bom-ref": "bundle", "name": "edgekit-bundle"}
    bill: dict[str, Any] = {
        "$schema": SCHEMA_URL,
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {
                "components": [{"type": "application", "name": "edgekit", "version": __version__}]
            },
            "component": root,
        },
        "components": components,
        "dependencies": [{"ref": "bundle", "dependsOn": [c["bom-ref"] for c in components]}],
    }
    if found := vulnerabilities({str(w["name"]): str(w["bom-ref"]) for w in wheels}):
        bill["vulnerabilities"] = found
    serial = uuid.uuid5(_NAMESPACE, encode(bill).decode())
    return {**bill, "serialNumber": f"urn:uuid:{serial}"}


def _model(layout: Layout, model: BundledModel) -> dict[str, Any]:
    entry = model.entry
    conversion = _paper(layout, model, CONVERSION)
    evaluation = _paper(layout, model, EVALUATION)
    source = conversion.get("source") or {}
    ref = f"model/{entry.model}-{entry.filetype}"
    found: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": ref,
        "name": entry.model,
        "version": source.get("revision") or entry.sha256[:16],
        "description": f"{model.name}, quantized to {entry.filetype}, as GGUF",
        "hashes": _hashes(entry.sha256),
        "licenses": [{"license": _licence(_paper(layout, model, LICENCE), model.licence)}],
        "modelCard": _card(conversion, evaluation),
        "components": [_file(ref, layer) for layer in (*model.files, *_sorted(model.documents))],
        "properties": _properties({"edgekit:filetype": entry.filetype, "edgekit:format": "gguf"}),
    }
    if repository := source.get("repository"):
        found["purl"] = f"pkg:huggingface/{repository}" + (
            f"@{source['revision']}" if source.get("revision") else ""
        )
    if source.get("files"):
        found["pedigree"] = {
            "ancestors": [
                {
                    "type": "file",
                    "bom-ref": f"{ref}/source/{file['name']}",
                    "name": file["name"],
                    "hashes": _hashes(file["sha256"]),
                }
                for file in source["files"]
            ],
            "notes": f"converted and quantized by {entry.made_by}",
        }
    return found


def _licence(record: Mapping[str, Any], name: str) -> dict[str, str]:
    spdx, url = record.get("spdx"), record.get("url")
    named = {"id": spdx} if spdx and not spdx.startswith("LicenseRef-") else {"name": name}
    return {**named, **({"url": url} if url else {})}


def _card(conversion: Mapping[str, Any], evaluation: Mapping[str, Any]) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "task": "text-generation",
        "architectureFamily": "transformer",
        "inputs": [{"format": "text"}],
        "outputs": [{"format": "text"}],
    }
    if conversion.get("architecture"):
        parameters["modelArchitecture"] = conversion["architecture"]
    card: dict[str, Any] = {
        "modelParameters": parameters,
        "properties": _properties(
            {"edgekit:datasets": "unknown to edgekit; ask the model's maker"}
        ),
    }
    compared = evaluation.get("divergence") or {}
    names = {
        "kl": "mean KL divergence from the unquantized model, nats",
        "same_top": "share of positions with the same likeliest token",
        "ratio": "perplexity over that of the unquantized model",
    }
    metrics = [
        {"type": what, "value": repr(compared[key])}
        for key, what in names.items()
        if compared.get(key) is not None
    ]
    if metrics:
        card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    return card


def _wheels(layout: Layout) -> list[dict[str, Any]]:
    """Every Python package in the layout, once for each file of it."""
    found: dict[str, dict[str, Any]] = {}
    for descriptor in layout.index():
        for layer in layout.manifest(descriptor).layers:
            name = layer.annotations.get(FILE_PATH, "").rpartition("/")[2]
            match = _WHEEL.fullmatch(name)
            if match is None:
                continue
            package = re.sub(r"[-_.]+", "-", match["name"]).lower()
            found[layer.hex] = {
                "type": "library",
                "bom-ref": f"wheel/{name}/{layer.hex[:16]}",
                "name": package,
                "version": match["version"],
                "purl": f"pkg:pypi/{package}@{match['version']}?file_name={name}",
                "hashes": _hashes(layer.hex),
            }
    return sorted(found.values(), key=lambda wheel: str(wheel["bom-ref"]))


def _file(ref: str, layer: Descriptor) -> dict[str, Any]:
    name = layer.annotations.get(FILE_PATH, layer.hex)
    return {
        "type": "file",
        "bom-ref": f"{ref}/{name}",
        "name": name,
        "hashes": _hashes(layer.hex),
        "properties": _properties(
            {"edgekit:blob": f"blobs/sha256/{layer.hex}", "edgekit:bytes": str(layer.size)}
        ),
    }


def _paper(layout: Layout, model: BundledModel, name: str) -> dict[str, Any]:
    layer = model.documents.get(name)
    return {} if layer is None else layout.json(layer)


def read_paper(layout: Layout, layer: Descriptor) -> bytes:
    """Return a document's bytes, checked. Raises BadDataError or IoFailedError."""
    import hashlib

    try:
        data = layout.blob(layer.digest).read_bytes()
    except OSError as error:
        raise from_os(error) from error
    if hashlib.sha256(data).hexdigest() != layer.hex:
        raise BadDataError(
            f"{layer.digest} does not hold what its name says",
            code="bad_layout",
            hint="get the folder again from its maker",
        )
    return data


def _sorted(documents: Mapping[str, Descriptor]) -> Sequence[Descriptor]:
    return [documents[name] for name in sorted(documents)]


def _hashes(sha256: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256}]


def _properties(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in sorted(values.items())]


def dump(bill: Mapping[str, Any]) -> bytes:
    """Return the one spelling of a bill."""
    return json.dumps(bill, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"
