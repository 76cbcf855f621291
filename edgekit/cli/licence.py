"""`edgekit licence`: what a model's licence asks, and who accepted it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import output
from edgekit.cli.options import Json

if TYPE_CHECKING:
    from edgekit.facts import ModelCard
    from edgekit.licence import Acceptance


def register(app: typer.Typer) -> None:
    @app.command(short_help="Show a model's licence, or accept it.")
    def licence(
        model: Annotated[str, typer.Argument(help="A model of `edgekit models`.")],
        accept: Annotated[
            bool, typer.Option("--accept", help="Record that you accept it, with name and time.")
        ] = False,
        text: Annotated[
            bool, typer.Option("--text", help="Print the whole text, where it is shipped.")
        ] = False,
        json: Json = False,
    ) -> None:
        """Show what a model's licence asks; record that it is accepted.

        Some licences must be accepted before their weights are fetched or deployed.

        Example: edgekit licence mistral-3-small
        """
        from dataclasses import asdict

        from edgekit import paths
        from edgekit.catalogue import find_model
        from edgekit.licence import accept as record
        from edgekit.licence import find_acceptance, text_of

        card = find_model(model)
        data = paths.data_dir()
        found = record(card, data) if accept else find_acceptance(card, data)
        if json:
            output.emit(
                {
                    "schema": "edgekit.licence/1",
                    "model": card.id,
                    "licence": asdict(card.licence),
                    "accepted": asdict(found) if found else None,
                }
            )
            return
        show(card, found)
        if text:
            shipped = text_of(card.licence)
            if shipped is None:
                output.say("Text", f"not shipped: {card.licence.url or 'see the repository'}")
            else:
                print()
                print(shipped.decode(errors="replace"))


def show(card: ModelCard, found: Acceptance | None) -> None:
    """Print the licence's conditions, what they mean here, and the record of its acceptance."""
    from edgekit import paths
    from edgekit.licence_policy import read_policy, rulings
    from edgekit.obligations import obligations

    licence = card.licence
    output.say("Licence", licence.name)
    for label, text in obligations(licence):
        output.say(label, text)
    for ruling in rulings(licence, read_policy(paths.config_dir())):
        output.say("Refused" if ruling.refused else "Warning", ruling.said)
    if found is not None:
        digest = f", text sha256 {found.text_sha256[:16]}…" if found.text_sha256 else ""
        output.say("Accepted", f"{found.when} by {found.who}{digest}")
    elif licence.acceptance_required:
        output.say("Accepted", f"not yet: edgekit licence {card.id} --accept")
    else:
        output.say("Accepted", "not needed")


def show_licence(card: ModelCard) -> None:
    """Print what is to be known before a model is fetched, bundled or served.

    Raises as `licence_policy.check_allowed`.
    """
    from edgekit import paths
    from edgekit.licence_policy import check_allowed
    from edgekit.obligations import obligations

    warnings = check_allowed(card, paths.data_dir(), paths.config_dir())
    use = {True: ", commercial use allowed", False: ", no commercial use", None: ""}
    output.say("Licence", card.licence.label + use[card.licence.commercial_use])
    for label, text in obligations(card.licence):
        if label in ("Asks", "Users", "Show"):
            output.say("", f"{label.lower()}: {text}")
    for text in warnings:
        output.say("Warning", text)
