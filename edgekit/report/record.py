"""The one record of a latency run, and its JSON form (`edgekit.bench/1`).

Text, HTML and JSON are drawn from this record and nothing else. Times are milliseconds, sizes
are bytes, speeds are tokens per second. Unknown is None, never zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TypeVar

from edgekit.errors import BadDataError

SCHEMA = "edgekit.bench/1"


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Three percentiles of one quantity; None where there are too few samples to say."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    samples: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A prediction with its error bar and where it comes from."""

    value: float
    low: float | None = None
    high: float | None = None
    basis: str | None = None


@dataclass(frozen=True, slots=True)
class PredictedRow:
    """What the plan promised for one number of users; `decode_tok_s` is all users together."""

    users: int
    decode_tok_s: Estimate | None = None
    prefill_tok_s: Estimate | None = None
    ttft_ms: Estimate | None = None


@dataclass(frozen=True, slots=True)
class Predicted:
    """The plan's side of the comparison."""

    peak_memory_bytes: int | None = None
    rows: tuple[PredictedRow, ...] = ()

    def at(self, users: int) -> PredictedRow | None:
        """Return the prediction for this many users, if the plan made one."""
        return next((row for row in self.rows if row.users == users), None)


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Decode speed of one user if memory traffic were the only cost."""

    bandwidth_gb_s: float | None = None
    bytes_per_step: int | None = None
    tok_s: float | None = None
    basis: str | None = None


@dataclass(frozen=True, slots=True)
class LatencyRow:
    """One level of load. `requests` were sent while the clock ran; `errors` of them failed.

    Percentiles and speeds come from the requests that succeeded. `prompt_tokens` and
    `output_tokens` are medians of what the server counted, with the extremes beside them.
    `decode_tok_s` and `prefill_tok_s` are all users together, `decode_tok_s_each` is one user's.
    """

    users: int
    requests: int
    errors: int
    prompt_tokens: int | None = None
    prompt_tokens_min: int | None = None
    prompt_tokens_max: int | None = None
    output_tokens: int | None = None
    output_tokens_min: int | None = None
    output_tokens_max: int | None = None
    cached_tokens_max: int | None = None
    ttft_ms: Percentiles = field(default_factory=Percentiles)
    itl_ms: Percentiles = field(default_factory=Percentiles)
    tpot_ms: Percentiles = field(default_factory=Percentiles)
    e2e_ms: Percentiles = field(default_factory=Percentiles)
    decode_tok_s: float | None = None
    decode_tok_s_each: float | None = None
    prefill_tok_s: float | None = None
    throughput_tok_s: float | None = None
    wall_s: float | None = None
    error_kinds: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class LatencyRecord:
    """One run of the load generator, with what it ran on and what was expected."""

    model: str
    rows: tuple[LatencyRow, ...]
    prompt_tokens_asked: int
    output_tokens_asked: int
    device: str | None = None
    filetype: str | None = None
    n_ctx: int | None = None
    predicted: Predicted | None = None
    peak_memory_bytes: int | None = None
    plan_digest: str | None = None
    ceiling: Ceiling | None = None
    endpoint: str | None = None
    created_at: str | None = None
    """When the run began, ISO 8601 in UTC."""
    method: tuple[tuple[str, str], ...] = ()
    """What the figures mean: (term, sentence) pairs, so that the report explains itself."""
    notes: tuple[str, ...] = ()
    """What a reader must know before trusting the figures."""

    @property
    def cache_cold(self) -> bool | None:
        """Did the server reuse no prompt token? None when it never said."""
        seen = [row.cached_tokens_max for row in self.rows if row.cached_tokens_max is not None]
        return None if not seen else max(seen) == 0

    @property
    def errors(self) -> int:
        return sum(row.errors for row in self.rows)


def to_json(record: LatencyRecord) -> dict[str, object]:
    """Return the JSON object of DESIGN section 5, `bench`.

    `tpot_ms` is the median, one number, as the contract says; its other percentiles are in
    `tpot_percentiles_ms`.
    """
    out: dict[str, object] = {"schema": SCHEMA}
    for item in fields(record):
        value = getattr(record, item.name)
        if item.name == "rows":
            out["rows"] = [_row_to_json(row) for row in record.rows]
        elif item.name == "method":
            out["method"] = dict(record.method)
        elif item.name == "notes":
            out["notes"] = list(record.notes)
        elif isinstance(value, Predicted | Ceiling):
            out[item.name] = asdict(value)
        else:
            out[item.name] = value
    if record.predicted is not None:
        out["predicted"] = {
            "peak_memory_bytes": record.predicted.peak_memory_bytes,
            "rows": [asdict(row) for row in record.predicted.rows],
        }
    return out


def _row_to_json(row: LatencyRow) -> dict[str, object]:
    out: dict[str, object] = asdict(row)
    out["tpot_ms"] = row.tpot_ms.p50
    out["tpot_percentiles_ms"] = asdict(row.tpot_ms)
    out["error_kinds"] = dict(row.error_kinds)
    return out


def from_json(data: object) -> LatencyRecord:
    """Rebuild a record from `to_json`'s object.

    Unknown keys are tolerated, since a newer edgekit may have written them; a missing or
    ill-typed key raises `BadDataError`.
    """
    top = _object(data, "the report")
    if top.get("schema") != SCHEMA:
        raise _bad(f"expected schema {SCHEMA}, found {top.get('schema')!r}")
    try:
        return LatencyRecord(
            model=_typed(top, "model", str),
            rows=tuple(_row_from_json(row) for row in _typed(top, "rows", list)),
            prompt_tokens_asked=_typed(top, "prompt_tokens_asked", int),
            output_tokens_asked=_typed(top, "output_tokens_asked", int),
            device=_maybe(top, "device", str),
            filetype=_maybe(top, "filetype", str),
            n_ctx=_maybe(top, "n_ctx", int),
            predicted=_predicted(top.get("predicted")),
            peak_memory_bytes=_maybe(top, "peak_memory_bytes", int),
            plan_digest=_maybe(top, "plan_digest", str),
            ceiling=_ceiling(top.get("ceiling")),
            endpoint=_maybe(top, "endpoint", str),
            created_at=_maybe(top, "created_at", str),
            method=tuple(
                (str(k), str(v)) for k, v in _object(top.get("method", {}), "method").items()
            ),
            notes=tuple(str(note) for note in _maybe(top, "notes", list) or ()),
        )
    except RecursionError as error:
        raise _bad("the report nests too deeply") from error


def _row_from_json(data: object) -> LatencyRow:
    row = _object(data, "a row")
    kinds = _object(row.get("error_kinds", {}), "error_kinds")
    return LatencyRow(
        users=_typed(row, "users", int),
        requests=_typed(row, "requests", int),
        errors=_typed(row, "errors", int),
        cached_tokens_max=_maybe(row, "cached_tokens_max", int),
        ttft_ms=_percentiles(row.get("ttft_ms")),
        itl_ms=_percentiles(row.get("itl_ms")),
        tpot_ms=_percentiles(row.get("tpot_percentiles_ms")),
        e2e_ms=_percentiles(row.get("e2e_ms")),
        error_kinds=tuple((kind, _typed(kinds, kind, int)) for kind in kinds),
        prompt_tokens=_maybe(row, "prompt_tokens", int),
        prompt_tokens_min=_maybe(row, "prompt_tokens_min", int),
        prompt_tokens_max=_maybe(row, "prompt_tokens_max", int),
        output_tokens=_maybe(row, "output_tokens", int),
        output_tokens_min=_maybe(row, "output_tokens_min", int),
        output_tokens_max=_maybe(row, "output_tokens_max", int),
        decode_tok_s=_number(row, "decode_tok_s"),
        decode_tok_s_each=_number(row, "decode_tok_s_each"),
        prefill_tok_s=_number(row, "prefill_tok_s"),
        throughput_tok_s=_number(row, "throughput_tok_s"),
        wall_s=_number(row, "wall_s"),
    )


def _percentiles(data: object) -> Percentiles:
    got = _object(data if data is not None else {}, "percentiles")
    return Percentiles(
        _number(got, "p50"),
        _number(got, "p95"),
        _number(got, "p99"),
        _maybe(got, "samples", int) or 0,
    )


def _predicted(data: object) -> Predicted | None:
    if data is None:
        return None
    got = _object(data, "predicted")
    rows = [_object(row, "a predicted row") for row in _maybe(got, "rows", list) or ()]
    return Predicted(
        peak_memory_bytes=_maybe(got, "peak_memory_bytes", int),
        rows=tuple(
            PredictedRow(
                _typed(row, "users", int),
                _estimate(row.get("decode_tok_s")),
                _estimate(row.get("prefill_tok_s")),
                _estimate(row.get("ttft_ms")),
            )
            for row in rows
        ),
    )


def _estimate(data: object) -> Estimate | None:
    if data is None:
        return None
    got = _object(data, "an estimate")
    value = _number(got, "value")
    if value is None:
        return None
    return Estimate(value, _number(got, "low"), _number(got, "high"), _maybe(got, "basis", str))


def _ceiling(data: object) -> Ceiling | None:
    if data is None:
        return None
    got = _object(data, "ceiling")
    return Ceiling(
        _number(got, "bandwidth_gb_s"),
        _maybe(got, "bytes_per_step", int),
        _number(got, "tok_s"),
        _maybe(got, "basis", str),
    )


T = TypeVar("T")


def _bad(message: str) -> BadDataError:
    return BadDataError(
        message, code="bad_report", hint="give a file that `edgekit bench --json` wrote"
    )


def _object(data: object, what: str) -> Mapping[str, object]:
    if not isinstance(data, dict):
        raise _bad(f"{what} is not a JSON object")
    return data


def _maybe(data: Mapping[str, object], key: str, kind: type[T]) -> T | None:
    value = data.get(key)
    if value is None:
        return None
    # bool is an int to Python, never to this format.
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _bad(f"{key} is {type(value).__name__}, expected {kind.__name__}")
    return value


def _typed(data: Mapping[str, object], key: str, kind: type[T]) -> T:
    value = _maybe(data, key, kind)
    if value is None:
        raise _bad(f"{key} is missing")
    return value


def _number(data: Mapping[str, object], key: str) -> float | None:
    value = data.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _bad(f"{key} is {type(value).__name__}, expected a number")
    return float(value)
