"""HTML and SVG elements as values: text is escaped by construction, markup is a type."""

from __future__ import annotations

from html import escape

from edgekit.report.clean import printable

VOID = frozenset({"meta", "input", "circle", "line", "rect", "path"})
"""Elements without content; the SVG ones close themselves."""


class Markup(str):
    """Text that is already HTML. Everything else is escaped when it enters an element."""

    __slots__ = ()


def element(tag: str, *children: str | None, **attributes: str | float | None) -> Markup:
    """Return `<tag attributes>children</tag>`; None children and attributes are left out.

    Attribute names are written with underscores for hyphens, and `class_` for `class`.
    """
    head = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(printable(_plain(value)))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in VOID:
        return Markup(f"<{tag}{head}>" if tag in ("meta", "input") else f"<{tag}{head}/>")
    return Markup(f"<{tag}{head}>{join(*children)}</{tag}>")


def join(*children: str | None) -> Markup:
    """Return the children one after the other, plain text escaped."""
    return Markup(
        "".join(
            child if isinstance(child, Markup) else escape(printable(child))
            for child in children
            if child is not None
        )
    )


def table(head: list[str], rows: list[list[str]], caption: str, label: str | None = None) -> Markup:
    """Return a table whose first column names its row, with headings a screen reader can use.

    `label` names its region where another table has the same caption.
    """
    return element(
        "div",
        element(
            "table",
            element("caption", caption),
            element("thead", element("tr", *(element("th", text, scope="col") for text in head))),
            element(
                "tbody",
                *(
                    element(
                        "tr",
                        element("th", row[0], scope="row"),
                        *(element("td", text) for text in row[1:]),
                    )
                    for row in rows
                ),
            ),
        ),
        # Scrolls sideways on a phone, so the keyboard must be able to reach it.
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=label or caption,
    )


def _plain(value: str | float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
