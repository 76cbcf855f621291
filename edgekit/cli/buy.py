"""`edgekit buy`: which device meets a need, cheapest first, and what the others miss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import output
from edgekit.cli.csv_file import CsvOption, write_csv
from edgekit.cli.fit_files import HtmlOption, write_page
from edgekit.cli.options import DEFAULT_USERS, FileTypeOption, Json, Source, Users

if TYPE_CHECKING:
    from edgekit.buy import Answer, Offer
    from edgekit.errors import EdgekitError
    from edgekit.facts import ModelCard
    from edgekit.speed import Estimate

SHOWN = 8
SHOWN_UNPRICED = 5
SHOWN_MISSES = 5


def register(app: typer.Typer) -> None:
    @app.command(short_help="Rank the devices that meet a need, cheapest first.")
    def buy(
        model: Annotated[str, typer.Argument(help="A model, as `name` or `name:FILETYPE`.")],
        users: Users = DEFAULT_USERS,
        ctx: Annotated[
            int | None,
            typer.Option(min=256, help="Tokens, shared by all users. Default: 32,768, 4,096 each."),
        ] = None,
        ttft: Annotated[
            float | None, typer.Option(min=1, metavar="MS", help="Longest time to first token.")
        ] = None,
        tok_s: Annotated[
            float | None,
            typer.Option("--tok-s", min=0.1, metavar="X", help="Least tokens a second a user."),
        ] = None,
        budget: Annotated[
            float | None, typer.Option(min=1, metavar="USD", help="Most to spend on devices.")
        ] = None,
        watts: Annotated[
            float | None, typer.Option(min=1, metavar="W", help="Most power the devices may draw.")
        ] = None,
        filetype: FileTypeOption = None,
        source: Source = None,
        gpus: Annotated[
            int,
            typer.Option(min=1, max=16, help="Most cards side by side, where one is too small."),
        ] = 4,
        sure: Annotated[
            bool, typer.Option("--sure", help="Ask the slow end of each range, not its middle.")
        ] = False,
        years: Annotated[float, typer.Option(help="Years that the price is spread over.")] = 3.0,
        utilisation: Annotated[
            float, typer.Option(help="Share of the hours in which tokens are made.")
        ] = 0.3,
        kwh_price: Annotated[float, typer.Option(help="USD for a kWh.")] = 0.25,
        explain: Annotated[
            bool, typer.Option("--explain", help="Show each figure's formula and source.")
        ] = False,
        csv: CsvOption = None,
        html: HtmlOption = None,
        json: Json = False,
    ) -> None:
        """Say which devices run a model for so many users, ranked by price, and what others miss.

        Example: edgekit buy mistral-3-small --users 4 --tok-s 20 --budget 3000
        """
        from edgekit.buy import Need, default_ctx
        from edgekit.buy import buy as rank
        from edgekit.buy_record import buy_record, buy_rows
        from edgekit.cli.options import model_and_filetype
        from edgekit.running_cost import Assumptions, check

        assumed = check(Assumptions(years, utilisation, kwh_price))
        name, wanted = model_and_filetype(model, filetype)
        card = _card(name, source)
        need = Need(
            card=card,
            users=users,
            n_ctx=ctx or default_ctx(card, users),
            ttft_ms=ttft,
            tok_s=tok_s,
            budget_usd=budget,
            watts=watts,
            filetype=wanted,
            sure=sure,
            gpus=gpus,
        )
        answer = rank(need, assumed)
        failure = None if answer.meets else nothing_meets(answer)
        if csv is not None:
            write_csv(csv, buy_rows(answer))
        if html is not None:
            write_page(html, buy_record(answer))
        if json:
            error = failure.as_dict() if failure else {}
            output.emit({**buy_record(answer), **error})
        else:
            show(answer, explain=explain)
            if failure is not None:
                raise failure
        if failure is not None:
            raise typer.Exit(failure.exit_code)


def _card(name: str, source: Path | None) -> ModelCard:
    """Return the model. Raises MissingInputError, also for a name that no weights carry."""
    from edgekit.source import cards_for

    absent, cards = cards_for(name, source)
    if absent is None:
        return cards[0]
    from edgekit.catalogue import find_model

    return find_model(name)


def nothing_meets(answer: Answer) -> EdgekitError:
    """The failure, with the device that comes nearest."""
    from edgekit.errors import NoDeviceError

    need = answer.need
    if answer.undecided:
        first = answer.undecided[0]
        asked = " and ".join(first.unknown)
        hint = (
            f"{first.device.id} and {len(answer.undecided) - 1} more have nothing against them, "
            f"but their {asked} is not known"
        )
    elif answer.nearest:
        nearest = answer.nearest[0]
        hint = f"the nearest is {nearest.device.id}: {nearest.misses[0].text}"
    else:
        hint = "add devices of your own to the catalogue"
    return NoDeviceError(
        f"no device of the catalogue is known to meet this need for {need.card.id}",
        code="nothing_meets",
        hint=hint,
    )


def show(answer: Answer, *, explain: bool) -> None:
    """Print the need, the answer, the ranked devices and the near misses."""
    _head(answer)
    priced = [o for o in answer.meets if o.price.usd is not None]
    unpriced = [o for o in answer.meets if o.price.usd is None]
    shown = priced[:SHOWN]
    if shown:
        print()
        _table(shown)
        _more(len(priced) - len(shown), "meet it at a higher price")
    for offers, title in (
        (unpriced, "Meet it, but no price found, so they are not ranked by it; smallest first"),
        (
            list(answer.undecided),
            f"Nothing known against them, but not known of each: {_open(answer)}",
        ),
    ):
        if offers:
            print(f"\n{title}")
            _table(offers[:SHOWN_UNPRICED])
            _more(len(offers) - SHOWN_UNPRICED, "like these")
            shown += offers[:SHOWN_UNPRICED]
    near = answer.nearest[:SHOWN_MISSES]
    if near:
        print("\nNear misses")
        width = max(len(o.device.id) for o in near) + 2
        for offer in near:
            text = "; ".join(m.text for m in offer.misses)
            first, *rest = output.wrap(text, output.WIDTH - width)
            print(f"{offer.device.id:<{width}}{first}")
            for line in rest:
                print(f"{'':<{width}}{line}")
    print()
    if explain:
        _explain(shown)
    else:
        _prices(shown)
    _notes(answer)


def _open(answer: Answer) -> str:
    return " and ".join(dict.fromkeys(u for o in answer.undecided for u in o.unknown))


def _head(answer: Answer) -> None:
    from edgekit.cli.buy_words import need_words

    output.say("Need", need_words(answer))
    if not answer.meets:
        output.say("Answer", "no device of the catalogue is known to meet all of it")
        return
    best = answer.meets[0]
    c = best.candidate
    price = "no price found" if best.price.usd is None else f"{best.price.usd:,.0f} USD"
    how = "the cheapest known that meets it" if best.price.usd is not None else "meets it"
    pace = f", {_band(c.speed.decode)} tok/s a user" if c.speed.decode else ""
    output.say("Answer", f"{best.device.id}, {price}: {how}, at {c.filetype.id}{pace}")
    if best.doubts:
        output.say("Doubt", "; ".join(best.doubts) + " (--sure asks for the slow end)")


def _table(offers: Sequence[Offer]) -> None:
    from edgekit.units import UNKNOWN, format_gib

    body = [
        (
            o.device.id,
            o.candidate.filetype.id,
            format_gib(o.candidate.plan.parts[0].total),
            _band(o.candidate.speed.decode),
            UNKNOWN if (t := o.candidate.speed.ttft_ms) is None else f"{t.value:,.0f} ms",
            UNKNOWN if o.price.usd is None else f"{o.price.usd:,.0f}",
            UNKNOWN if o.device.watts is None else f"{o.device.watts:,.0f}",
            _money(o.cost.total),
        )
        for o in offers
    ]
    heads = ("device", "type", "needs", "tok/s a user", "TTFT", "USD", "W", "USD/M tok")
    output.table(heads, body, "llrrrrrr")


def _more(count: int, what: str) -> None:
    if count > 0:
        print(f"and {count} more {what}: --csv FILE or --json has all")


def _prices(offers: Sequence[Offer]) -> None:
    """Say where each price is from, several devices of one note together."""
    from edgekit.price import is_machine

    whole = [offer.device.id for offer in offers if is_machine(offer.device)]
    if whole and len(whole) < len(offers):
        verb = "is a whole machine" if len(whole) == 1 else "are whole machines"
        output.say("Machines", f"{', '.join(whole)} {verb}; the others need one around them")
    notes: dict[str, list[str]] = {}
    for offer in offers:
        if offer.price.note != "no price found":
            notes.setdefault(offer.price.note, []).append(offer.device.id)
    for i, (note, names) in enumerate(notes.items()):
        output.say("" if i else "Prices", f"{', '.join(names)}: {note}")


def _explain(offers: Sequence[Offer]) -> None:
    from edgekit.cli.buy_words import explain_lines

    for offer in offers:
        for i, text in enumerate(explain_lines(offer)):
            print("\n".join(output.wrap(f"{'  ' if i else ''}{text}", output.WIDTH)))
        print()


def _notes(answer: Answer) -> None:
    from edgekit.speed import OUTPUT_TOKENS, PROMPT_TOKENS

    output.say("Cost", f"a million generated tokens: {answer.assumed.words}")
    output.say(
        "Speed",
        f"predicted, all users at once, prompts of {PROMPT_TOKENS} and answers of {OUTPUT_TOKENS} "
        "tokens, nothing cached; long contexts are slower",
    )
    if answer.need.tok_s is None and answer.need.ttft_ms is None:
        output.say("", "no speed was asked: --tok-s 10 and --ttft 2000 ask for one")
    if answer.meets:
        need, best = answer.need, answer.meets[0]
        quoted = f"'{best.device.id}'" if "*" in best.device.id else best.device.id
        command = f"edgekit fit {need.card.id} --device {quoted} --users {need.users}"
        output.say("Next", f"{command} --ctx {need.n_ctx}")


def _band(estimate: Estimate | None) -> str:
    from edgekit.units import UNKNOWN

    if estimate is None:
        return UNKNOWN
    digits = 0 if estimate.value >= 100 else 1
    return f"{estimate.value:.{digits}f} ({estimate.low:.{digits}f}-{estimate.high:.{digits}f})"


def _money(value: float | None) -> str:
    from edgekit.units import UNKNOWN

    if value is None:
        return UNKNOWN
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"
