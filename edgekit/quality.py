"""What quantization cost, what it may cost, and the verdict: pure.

A file is judged by three things: how far its predictions moved from the unquantized model's (KL
divergence over a text), how far its weights moved (tensor by tensor), and whether it still
answers a set of prompts in the same words. The first two can refuse it; the third is reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Final

SCHEMA: Final = "edgekit.evaluation/1"

FLOOR: Final = 0.002
"""Nats that any file may differ by: kernels of another order of additions, BF16 against F32."""

FACTORS: Final = ((7e9, 2.0), (1e9, 2.5), (0.0, 3.0))
"""Parameters from which a model may lose this many times what the table says of its file type.

The table is of an 8 B model on one text. Larger models lose less; a small one has less to spare,
and a text of many kinds costs any model more. The embedded model, 0.008 B, loses 0.4 to 0.8 times
the table's on our text, and 1.4 times it on windows of what it never learned.
"""


@dataclass(frozen=True, slots=True)
class Limit:
    """The most KL divergence in nats that is accepted, and why that much."""

    kl: float
    reason: str


def limit_for(filetype: str, loss: float, params: int) -> Limit:
    """Return the limit for a file type whose published loss is `loss`, on a model of a size."""
    factor = next(f for least, f in FACTORS if params >= least)
    size = "7 billion parameters or more" if factor == 2.0 else f"{_size(params)} parameters"
    return Limit(
        FLOOR + factor * loss,
        f"{factor:g} × the {loss:g} published for {filetype}, for {size}, and {FLOOR:g} besides",
    )


def _size(params: int) -> str:
    return f"{params / 1e9:.1f} billion" if params >= 1e9 else f"{params / 1e6:.0f} million"


@dataclass(frozen=True, slots=True)
class Divergence:
    """A file against its base over a text; None where the file computed no finite number.

    KL in nats, `same_top` the share of positions with the same likeliest token, `ratio` the
    perplexity over the base's. `*_error` are standard errors.
    """

    positions: int
    kl: float | None
    kl_error: float | None
    kl_p999: float | None
    kl_max: float | None
    same_top: float | None
    perplexity: float | None
    base_perplexity: float | None
    ratio: float | None
    ratio_error: float | None


@dataclass(frozen=True, slots=True)
class Drift:
    """A prompt that is answered otherwise: where the answers part, in tokens, and both of them."""

    prompt: str
    at: int
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class WrongTensor:
    """A tensor that is not what its type makes of the original."""

    name: str
    type: str
    error: float | None
    limit: float


@dataclass(frozen=True, slots=True)
class Quality:
    """All that was found about one file. `material` names texts and settings by digest.

    `divergence` is None where the unquantized model could not be run; `note` says why.
    """

    file_sha256: str
    material: str
    divergence: Divergence | None
    prompts: int
    drifts: tuple[Drift, ...]
    tensors: int
    wrong: tuple[WrongTensor, ...]
    base: str
    note: str | None = None
    seconds: float = 0.0
    reasons: tuple[str, ...] = field(default=())

    @property
    def unchanged(self) -> int:
        return self.prompts - len(self.drifts)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Is a file what its file type promises? `summary` is for a person, in one line."""

    good: bool
    summary: str
    why: str | None = None


def judge(quality: Quality, limit: Limit) -> Verdict:
    """Judge a file by what was found about it."""
    found = quality.divergence
    parts = []
    if found is not None:
        kl = "not a number" if found.kl is None else f"{found.kl:.3g}"
        parts.append(f"KL {kl} (limit {limit.kl:.3g})")
        if quality.prompts:
            parts.append(f"{quality.unchanged}/{quality.prompts} canaries unchanged")
    elif quality.note:
        parts.append(quality.note)
    right = quality.tensors - len(quality.wrong)
    if quality.tensors and (found is None or quality.wrong):
        parts.append(f"{right}/{quality.tensors} tensors match the original")
    summary = " · ".join(parts)
    if quality.wrong:
        first = quality.wrong[0]
        size = "no number" if first.error is None else f"off by {first.error:.0%}"
        return Verdict(
            False,
            summary,
            f"{len(quality.wrong)} of {quality.tensors} tensors are not those of the original; "
            f"{first.name} ({first.type}) is {size}, at most {first.limit:.1%} is explained",
        )
    if found is None:
        return Verdict(True, summary)
    if found.kl is None:
        return Verdict(False, summary, "the file computes no finite numbers")
    if found.kl > limit.kl:
        return Verdict(
            False,
            summary,
            f"its predictions differ by {found.kl:.3g} nats from the unquantized model's, "
            f"{limit.kl:.3g} are accepted ({limit.reason})",
        )
    return Verdict(True, summary)


def to_json(quality: Quality) -> dict[str, object]:
    """Return the record `edgekit.evaluation/1`."""
    return {"schema": SCHEMA, **asdict(quality), "unchanged": quality.unchanged}


def from_json(data: object) -> Quality | None:
    """Rebuild a record; None for anything that is not a whole one of this schema."""
    if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
        return None
    try:
        values = {k: v for k, v in data.items() if k not in ("schema", "unchanged")}
        found = values.pop("divergence")
        return Quality(
            **{
                **values,
                "divergence": found and Divergence(**found),
                "drifts": tuple(Drift(**d) for d in values["drifts"]),
                "wrong": tuple(WrongTensor(**w) for w in values["wrong"]),
                "reasons": tuple(map(str, values["reasons"])),
            }
        )
    except (KeyError, TypeError):
        return None
