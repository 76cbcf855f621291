"""What a million generated tokens cost on a device: its price over the years, and its power.

    price   price / (tokens a second x 31,557,600 x years x utilisation) x 1,000,000
    power   watts / 1,000 x price of a kWh x 1,000,000 / (tokens a second x 3,600)

`tokens a second` is of all users together. Power counts while tokens are made, at the device's
rated draw; idle hours, the machine around a card, rooms and people are not in it. What is not
known is None and named, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgekit.errors import UsageError
from edgekit.speed import Speed

SECONDS_PER_YEAR: Final = 365.25 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What a reckoning of cost takes for granted.

    `utilisation` is the share of all hours in which tokens are made, 0 to 1.
    """

    years: float = 3.0
    utilisation: float = 0.3
    kwh_price: float = 0.25

    def as_dict(self) -> dict[str, float]:
        """JSON form."""
        return {"years": self.years, "utilisation": self.utilisation, "kwh_price": self.kwh_price}

    @property
    def words(self) -> str:
        """One sentence for below a table."""
        return (
            f"price over {self.years:g} years at {self.utilisation * 100:g} % use, and power at "
            f"{self.kwh_price:g} USD a kWh; the device alone, without the machine around a card"
        )


@dataclass(frozen=True, slots=True)
class Cost:
    """USD for a million generated tokens; `missing` names what is not known of it.

    `low` and `high` come from the range of the speed. `total` is None as soon as a part is.
    """

    price: float | None
    power: float | None
    low: float | None
    high: float | None
    missing: tuple[str, ...]
    formula: tuple[str, ...]

    @property
    def total(self) -> float | None:
        if self.price is None or self.power is None:
            return None
        return self.price + self.power

    def as_dict(self) -> dict[str, object]:
        """JSON form, USD."""
        return {
            "usd_per_million_tokens": _round(self.total),
            "price_part": _round(self.price),
            "power_part": _round(self.power),
            "low": _round(self.low),
            "high": _round(self.high),
            "missing": list(self.missing),
            "formula": list(self.formula),
        }


def check(assumed: Assumptions) -> Assumptions:
    """Return them. Raises UsageError for years, a use or a price that make no sense."""
    problem = None
    if not 0 < assumed.years <= 100:
        problem = "--years must be more than 0 and at most 100"
    elif not 0 < assumed.utilisation <= 1:
        problem = "--utilisation must be more than 0 and at most 1"
    elif not 0 <= assumed.kwh_price < 1000:
        problem = "--kwh-price must not be negative"
    if problem is not None:
        raise UsageError(problem, code="bad_assumption", hint="--years 3 --utilisation 0.3")
    return assumed


def cost(price_usd: float | None, watts: float | None, speed: Speed, assumed: Assumptions) -> Cost:
    """The cost of a million tokens at a predicted speed; formulas as in the module's docstring."""
    decode = speed.decode
    missing = [
        name
        for name, value in (("price", price_usd), ("power draw", watts), ("speed", decode))
        if value is None
    ]
    if decode is None or decode.value <= 0:
        return Cost(None, None, None, None, tuple(missing), ())
    pace = decode.value * speed.users
    bought = None if price_usd is None else _bought(price_usd, pace, assumed)
    burnt = None if watts is None else _burnt(watts, pace, assumed)
    low = high = None
    if bought is not None and burnt is not None:
        low = (bought + burnt) * decode.value / decode.high
        high = (bought + burnt) * decode.value / decode.low if decode.low > 0 else None
    return Cost(bought, burnt, low, high, tuple(missing), _formula(price_usd, watts, pace, assumed))


def _bought(price_usd: float, pace: float, assumed: Assumptions) -> float:
    return 1e6 * price_usd / (pace * SECONDS_PER_YEAR * assumed.years * assumed.utilisation)


def _burnt(watts: float, pace: float, assumed: Assumptions) -> float:
    return watts / 1000 * assumed.kwh_price * 1e6 / (pace * 3600)


def _formula(
    price_usd: float | None, watts: float | None, pace: float, a: Assumptions
) -> tuple[str, ...]:
    lines = []
    if price_usd is not None:
        lines.append(
            f"price: {price_usd:,.0f} USD / ({pace:.1f} tok/s x {SECONDS_PER_YEAR:,.0f} s x "
            f"{a.years:g} years x {a.utilisation:g}) x 1,000,000 = "
            f"{_bought(price_usd, pace, a):.3f} USD"
        )
    if watts is not None:
        lines.append(
            f"power: {watts:g} W / 1,000 x {a.kwh_price:g} USD x 1,000,000 / "
            f"({pace:.1f} tok/s x 3,600 s) = {_burnt(watts, pace, a):.3f} USD"
        )
    return tuple(lines)


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
