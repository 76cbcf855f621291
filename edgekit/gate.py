"""The gate of a deployment: a file that lost more than its file type explains is not served."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgekit import evaluation, material
from edgekit.catalogue import load_filetypes
from edgekit.errors import BadDataError
from edgekit.evaluation import Progress, Setting
from edgekit.plan import Plan
from edgekit.quality import Limit, Quality, Verdict, judge, limit_for, to_json
from edgekit.store import content_of, file_sha256
from edgekit.surroundings import free_bytes, nearest_existing
from edgekit.units import MIB, format_bytes
from edgekit.weights import weights

SPARE_BYTES: Final = 512 * MIB
"""Context, logits and the process itself, beside the weights."""


@dataclass(frozen=True, slots=True)
class Gate:
    """What a file is held against. `force` serves it all the same.

    `root` is the store's folder, `available_bytes` the host memory that may be taken, None
    where it is not known.
    """

    root: Path
    available_bytes: int | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class Proven:
    """What was found about a file, what it was held against, and what came of it."""

    quality: Quality
    limit: Limit
    verdict: Verdict
    cached: bool = False

    @property
    def summary(self) -> str:
        return self.verdict.summary + (" (kept)" if self.cached else "")

    @property
    def method(self) -> tuple[tuple[str, str], ...]:
        """Return what a report says of the quantization, and what the figures mean."""
        from edgekit_quantize.answers import ANSWER_TOKENS

        found, said = self.quality.divergence, self.verdict.summary
        if found is not None:
            said += (
                f". KL divergence in nats from the unquantized model over {found.positions:,} "
                f"positions of edgekit's evaluation text, accepted up to {self.limit.reason}; "
                f"a canary is a prompt whose likeliest {ANSWER_TOKENS} tokens are compared"
            )
        return (("Quantization", said),)

    def as_dict(self) -> dict[str, object]:
        """Return the record for receipts and --json."""
        return {
            **to_json(self.quality),
            "limit_kl": self.limit.kl,
            "limit_reason": self.limit.reason,
            "good": self.verdict.good,
            "why": self.verdict.why,
            "cached": self.cached,
        }


def prove(
    plan: Plan, file: Path, gate: Gate, setting: Setting, progress: Progress | None = None
) -> Proven:
    """Compare the plan's file with what it was made from, unless the store's record knows.

    Raises:
        BadDataError: the file is worse than its type explains, and `force` is off.
        EdgekitError: what the evaluation raises.
    """
    filetype = load_filetypes()[plan.choice.filetype]
    limit = limit_for(filetype.id, filetype.loss, plan.card.params)
    obstacle = _obstacle(plan, gate, filetype.loss)
    # A file of the store is named by its content.
    known = evaluation.kept(gate.root, content_of(file), material.gate())
    if known is not None and known.divergence is None and obstacle is None:
        known = None  # it could not be run then; now it can
    quality = known or _evaluate(plan, file, gate, setting, obstacle, progress)
    if known is None and quality.tensors:
        evaluation.keep(gate.root, quality)
    proven = Proven(quality, limit, judge(quality, limit), cached=known is not None)
    if not proven.verdict.good and not gate.force:
        raise _refused(plan, file, proven)
    return proven


def _obstacle(plan: Plan, gate: Gate, loss: float) -> str | None:
    """Say why the unquantized model cannot be run beside the file here; None if it can."""
    if plan.weights is None:
        return "not compared: the weights that this file was made from are not here"
    if loss == 0:
        return "predictions not compared: nothing was quantized"
    stored = sum(f.stat().st_size for f in plan.weights.glob("*.safetensors"))
    # FP8 takes twice its bytes once it is BF16.
    needed = max(stored, weights(plan.card, "BF16").total)
    room = free_bytes(nearest_existing(gate.root / "partial"))
    return too_large(needed, gate.available_bytes, room)


def too_large(needed: int, available_bytes: int | None, room_bytes: int | None) -> str | None:
    """Say why an unquantized model of so many bytes cannot be run; None if it can. Pure."""
    what = f"predictions not compared: the unquantized model ({format_bytes(needed)}) does not fit"
    if available_bytes is not None and needed + SPARE_BYTES > available_bytes:
        return f"{what} in the {format_bytes(available_bytes)} of memory that are free"
    if room_bytes is not None and needed > room_bytes:
        return f"{what} on the disk, {format_bytes(room_bytes)} are free"
    return None


def _evaluate(
    plan: Plan,
    file: Path,
    gate: Gate,
    setting: Setting,
    obstacle: str | None,
    progress: Progress | None,
) -> Quality:
    trial = material.gate()
    if plan.weights is None or plan.source is None:
        return Quality(content_of(file), trial.digest, None, 0, (), 0, (), "", obstacle)
    if content_of(file) != file.stem:
        several = "not compared: the model lies in several files, as it was installed"
        return Quality(content_of(file), trial.digest, None, 0, (), 0, (), "", several)
    return evaluation.evaluate(
        file,
        plan.weights,
        trial,
        setting,
        work=gate.root / "partial",
        file_sha256=file.stem,
        run=obstacle is None,
        note=obstacle,
        stored=evaluation.stored_base(plan.card.id, plan.source, trial),
        progress=progress,
    )


def _refused(plan: Plan, file: Path, proven: Proven) -> BadDataError:
    """Say what is wrong with a file, and whether it is the disk that spoiled it."""
    what = f"{plan.card.id} {plan.choice.filetype} is refused: {proven.verdict.why}"
    if content_of(file) == file.stem and file_sha256(file) != file.stem:
        return BadDataError(
            f"{what}; the file changed since it was written",
            code="quantization_refused",
            hint=f"delete {file} and run the same command again",
        )
    return BadDataError(
        what,
        code="quantization_refused",
        hint="choose another file type, or pass --force to serve this one all the same",
    )
