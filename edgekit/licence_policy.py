"""May this model be used here? Its licence held against what this organisation says of itself.

    [licence]                    in trust.toml
    restricted = "refuse"        or "warn": say it and go on
    use = "production"           or "evaluation"; without it nobody has said
    eu = true                    whether the licensee is domiciled in the European Union
    monthly_users = 2_000_000    of all its products together

Nothing here gives legal advice. What is not said is not guessed: it becomes a warning.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgekit.errors import ConfigError, DeniedError
from edgekit.facts import Licence, ModelCard
from edgekit.licence import check_accepted

_KINDS: Final = {
    "restricted": ("refuse", "warn"),
    "use": ("production", "evaluation"),
}


@dataclass(frozen=True, slots=True)
class Policy:
    """What an organisation says; None is unsaid."""

    restricted: str = "refuse"
    use: str | None = None
    eu: bool | None = None
    monthly_users: int | None = None


@dataclass(frozen=True, slots=True)
class Ruling:
    """One thing that a licence withholds. `refused`: from this organisation, as it says itself."""

    refused: bool
    code: str
    said: str


def read_policy(folder: Path) -> Policy:
    """Read `trust.toml` of the configuration folder. Raises ConfigError for what it cannot mean."""
    path = folder / "trust.toml"
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8")).get("licence", {})
    except FileNotFoundError:
        return Policy()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise _bad(path, str(error)) from error
    if not isinstance(found, dict):
        raise _bad(path, "[licence] is no table")
    for key, value in found.items():
        good = {
            "restricted": value in _KINDS["restricted"],
            "use": value in _KINDS["use"],
            "eu": isinstance(value, bool),
            "monthly_users": type(value) is int and value >= 0,
        }.get(key)
        if not good:
            raise _bad(path, f"[licence] {key} = {value!r}")
    return Policy(**found)


def rulings(licence: Licence, policy: Policy) -> tuple[Ruling, ...]:
    """Return what the licence withholds from such an organisation, or may withhold. Pure."""
    found = []
    if licence.commercial_use is False and policy.use != "evaluation":
        found.append(
            Ruling(
                policy.use == "production",
                "licence_non_production",
                f"the {licence.name} allows no commercial use",
            )
        )
    if licence.commercial_use is None:
        found.append(
            Ruling(False, "licence_unread", f"nobody has read up what the {licence.name} allows")
        )
    if licence.eu_clause and policy.eu is not False:
        found.append(
            Ruling(policy.eu is True, "licence_eu", f"{licence.name}: {licence.eu_clause}")
        )
    users, limit = policy.monthly_users, licence.mau_limit
    if limit is not None and users is not None and users > limit:
        found.append(
            Ruling(
                True,
                "licence_users",
                f"the {licence.name} ends at {limit:,} users a month, and there are {users:,}",
            )
        )
    return tuple(found)


def check_allowed(card: ModelCard, data: Path, config: Path) -> tuple[str, ...]:
    """Return what is to be said before a model is fetched, bundled or served.

    Raises:
        DeniedError: the licence must be accepted first (`licence_not_accepted`), or withholds
            its grant from this organisation.
        ConfigError: trust.toml cannot be read.
    """
    policy = read_policy(config)
    said = []
    try:
        check_accepted(card, data)
    except DeniedError as error:
        if policy.restricted == "refuse":
            raise
        said.append(error.message)
    for ruling in rulings(card.licence, policy):
        if ruling.refused and policy.restricted == "refuse":
            raise DeniedError(
                f"{card.id} may not be used here: {ruling.said}",
                code=ruling.code,
                hint="choose a model with another licence, or buy one of its maker; [licence] "
                "in trust.toml says what this organisation is and what is refused",
            )
        said.append(ruling.said)
    return tuple(said)


def _bad(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"{path} cannot be used: {why}", code="bad_trust_settings", hint="mend or remove the file"
    )
