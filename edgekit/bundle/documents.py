"""The papers of a bundled model: licence, notice, acceptance, conversion, evaluation, fit.

    LICENSE.txt  NOTICE.txt  licence.json  licence-acceptance.json
    conversion.json  evaluation.json  fit.json

Deterministic: what depends on the machine that makes the bundle (its free memory, where its
folders lie) stays out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgekit.bundle.layout import encode
from edgekit.facts import ModelCard
from edgekit.store import Entry

if TYPE_CHECKING:
    from edgekit.plan import Plan

ACCEPTANCE: Final = "licence-acceptance.json"
CONVERSION: Final = "conversion.json"
EVALUATION: Final = "evaluation.json"
FIT: Final = "fit.json"
LICENCE: Final = "licence.json"
NOTICE: Final = "NOTICE.txt"
_TOLD: Final = ("edgekit.", "quantize.imatrix.", "general.architecture", "general.file_type")
"""Metadata of a GGUF that says how it was made."""


def documents_of(
    plan: Plan, entry: Entry, gguf: Path, *, store: Path, data: Path
) -> dict[str, bytes]:
    """Return a model's papers by name.

    Raises:
        MissingInputError: the licence must be handed on and its text is not here.
        BadDataError: the file, or the record of the licence's acceptance, is damaged.
    """
    from edgekit.licence import SCHEMA, find_acceptance
    from edgekit.obligations import legal_texts, notice

    card = plan.card
    conversion = conversion_record(card, entry, gguf, plan.weights)
    origin = conversion["source"]
    changes = f"converted to GGUF and quantized to {entry.filetype} by {entry.made_by}"
    where = f"{origin['repository']}@{origin['revision']}" if origin.get("repository") else None
    papers = legal_texts(card, plan.weights, data)
    papers[NOTICE] = notice(card, changes, where)
    papers[LICENCE] = encode(licence_record(card))
    papers[CONVERSION] = encode(conversion)
    papers[EVALUATION] = encode(evaluation_record(plan, entry, store))
    accepted = find_acceptance(card, data)
    if accepted is not None:
        papers[ACCEPTANCE] = encode({"schema": SCHEMA, **asdict(accepted)})
    if not plan.device.probed:
        papers[FIT] = encode(fit_for(plan))
    return papers


def licence_record(card: ModelCard) -> dict[str, Any]:
    """Return what the licence asks, for programs. Pure."""
    from edgekit.obligations import words_of

    facts = {k: v for k, v in asdict(card.licence).items() if k != "text"}
    return {
        "schema": "edgekit.bundled-licence/1",
        "model": card.id,
        **facts,
        **asdict(words_of(card.licence)),
    }


def conversion_record(
    card: ModelCard, entry: Entry, gguf: Path, weights: Path | None
) -> dict[str, Any]:
    """Return from what the file was made and by what, with a digest of each source file.

    The sources are named where they were fetched by edgekit; `edgekit.source.digest` inside the
    file names their content in any case. Raises BadDataError.
    """
    from edgekit.ready_gguf import inspect

    found = inspect(gguf)
    told = {k: v for k, v in found.metadata.items() if k.startswith(_TOLD)}
    return {
        "schema": "edgekit.conversion/1",
        "model": card.id,
        "architecture": found.architecture,
        "filetype": entry.filetype,
        "made_by": entry.made_by,
        "gguf": {
            "sha256": entry.sha256,
            "bytes": entry.file_bytes,
            "tensor_bytes": entry.tensor_bytes,
            "tensor_types": [
                {"type": name, "bytes": size, "tensors": count} for name, size, count in found.types
            ],
            "chat_template_sha256": found.template_sha256,
        },
        "metadata": {key: told[key] for key in sorted(told)},
        "source": _source(card, weights),
    }


def _source(card: ModelCard, weights: Path | None) -> dict[str, Any]:
    from edgekit.checkpoints import MANIFEST, read_folder

    hub = next((s for s in card.sources if s.kind == "hub"), None)
    if weights is not None and (weights / MANIFEST).is_file():
        manifest = read_folder(weights)
        return {
            "repository": manifest.repository,
            "revision": manifest.revision,
            "files": [
                {"name": f.name, "bytes": f.bytes, "sha256": f.sha256, "check": f.check}
                for f in sorted(manifest.files, key=lambda f: f.name)
            ],
        }
    kind = next((s.kind for s in card.sources), None)
    return {
        "repository": hub.location if hub else None,
        "revision": hub.revision if hub else None,
        "kind": kind,
        "files": None,
    }


def evaluation_record(plan: Plan, entry: Entry, store: Path) -> dict[str, Any]:
    """Return what the gate found about this very file, or that nothing was compared."""
    from edgekit import evaluation, material
    from edgekit.catalogue import load_filetypes
    from edgekit.quality import judge, limit_for, to_json

    found = evaluation.kept(store, entry.sha256, material.gate())
    if found is None:
        return {
            "schema": "edgekit.evaluation/1",
            "file_sha256": entry.sha256,
            "evaluated": False,
            "why": "not compared with the unquantized model on the machine that made the bundle",
        }
    filetype = load_filetypes()[entry.filetype]
    limit = limit_for(filetype.id, filetype.loss, plan.card.params)
    verdict = judge(found, limit)
    return {
        **to_json(found),
        "evaluated": True,
        "limit_kl": limit.kl,
        "limit_reason": limit.reason,
        "good": verdict.good,
        "summary": verdict.summary,
        "why": verdict.why,
    }


def fit_for(plan: Plan) -> dict[str, Any]:
    """Return the fit report and the plan for a device of the catalogue."""
    from edgekit.fit_record import fit_record
    from edgekit.plan import as_record

    planned: Mapping[str, Any] = as_record(plan)["plan"]  # type: ignore[assignment]
    # Steps say what lies in this machine's store.
    kept = {k: v for k, v in planned.items() if k not in ("steps", "fetch")}
    return {
        "schema": "edgekit.bundle-fit/1",
        "plan": kept,
        "fit": fit_record([plan.choice.candidate]),
    }
