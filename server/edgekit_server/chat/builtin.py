"""Chat templates for Mistral models whose file has none, or has one that cannot show tools.

Mistral publishes its format as code (mistral-common), not as a template, and some of its
repositories, Mistral Small 24B 2501 among them, have a template without tools. The vocabulary
then tells the version, and templates/ has ours, which give mistral-common's very tokens.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cache
from importlib.resources import files

VERSIONS = ("v3", "v7", "v11", "v13")
_WITH_TOOLS = "{%- if tools or messages | selectattr('role', 'equalto', 'tool') | list -%}"


def completed(template: str | None, control_tokens: Collection[str]) -> tuple[str | None, str]:
    """Return the template to use, and why ("" if it is simply the model's own)."""
    version = version_of(control_tokens)
    if version is None or (template is not None and "[INST]" not in template):
        return template, ""
    if template is None:
        return source(version), f"the model has no chat template: that of Mistral {version}"
    if re.search(r"\btools\b", template):
        return template, ""
    # One template of two, so that a conversation without tools stays as the model's own has it.
    whole = f"{_WITH_TOOLS}{source(version)}{{%- else -%}}{template}{{%- endif -%}}"
    return whole, f"the model's chat template shows no tools: with tools, that of Mistral {version}"


def fallback_of(family: str) -> str | None:
    """Return our template for a family, for conversations that the model's own refuses.

    Mistral's templates insist on turns that alternate, and an agent whose call was denied has
    none; mistral-common takes them. None for a family that we have no template for.
    """
    version = family.removeprefix("mistral-")
    return source(version) if version in VERSIONS and version != family else None


def version_of(control_tokens: Collection[str]) -> str | None:
    """Return the version of Mistral's format that a vocabulary was made for; None if none."""
    known = set(control_tokens)
    if not {"[INST]", "[AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]"} <= known:
        return None
    if "[ARGS]" in known:
        return "v13" if "[THINK]" in known else "v11" if "[CALL_ID]" in known else "v13"
    return "v7" if {"[SYSTEM_PROMPT]", "[TOOL_CONTENT]"} <= known else "v3"


@cache
def source(version: str) -> str:
    """Return our template for a version: v3, v7, v11 or v13."""
    return (files(__package__) / "templates" / f"mistral-{version}.jinja").read_text("utf-8")
