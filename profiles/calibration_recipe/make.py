"""Write the calibration and evaluation texts: `python profiles/calibration_recipe/make.py`

The same commit gives the same texts. Nothing that goes into one goes into the other: they take
different files of this repository, other frames of sentences and other programs. What is shipped
as `v1` stays as it is, since importance matrices and stored bases name it by its digest.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TO = ROOT / "profiles" / "edgekit_profiles" / "calibration"
sys.path.insert(0, str(ROOT / "profiles" / "pocket_recipe"))

import talk  # noqa: E402
import world  # noqa: E402

FILES = {
    "calibration": (
        "server/edgekit_server/engine/{scheduler,reuse,loop,speculate,draft,sampling}.py",
        "server/edgekit_server/chat/{parser,normalise,calls,jsonscan}.py",
        "server/edgekit_server/{app,client,router}.py",
        "server/edgekit_server/web/{page,play,report}.js",
        "server/edgekit_server/web/index.html",
        "server/README.md",
        "profiles/edgekit_profiles/README.md",
        "profiles/edgekit_profiles/families.toml",
    ),
    "evaluation": (
        "edgekit/{fit,speed,plan,latency,running}.py",
        "edgekit/connect/{jsonc,yaml_text}.py",
        "edgekit/cli/probe.py",
        "server/edgekit_server/web/{live,dom}.js",
        "README.md",
        "edgekit/README.md",
    ),
}
DRAWN = {"calibration": (1, 40), "evaluation": (2, 14)}
"""Seed, and how many blocks of conversation and of small programs."""
BLOCK = 6000
"""Characters of a file in a row; then something else comes, so that any part is a mixture."""


def own_files(patterns: tuple[str, ...]) -> list[str]:
    """Return the files' texts, in blocks that end with a line."""
    blocks = []
    for pattern in patterns:
        head, _, rest = pattern.partition("{")
        names, _, tail = rest.partition("}")
        for name in names.split(",") if rest else [""]:
            lines = (ROOT / f"{head}{name}{tail}").read_text().splitlines(keepends=True)
            block = ""
            for line in lines:
                block += line
                if len(block) > BLOCK:
                    blocks.append(block)
                    block = ""
            blocks.append(block)
    return [b for b in blocks if b.strip()]


def drawn(seed: int, count: int) -> Iterator[str]:
    """Give conversations with tools, talk in all languages and small programs, in turn."""
    r = random.Random(seed)
    held_out = seed == DRAWN["evaluation"][0]
    languages, programs = list(talk.LANGUAGES), list(talk.PROGRAMS)
    for i in range(count):
        task = world.task(r, chain=i % 2 == 0, held_out=held_out)
        yield "\n".join(
            (
                f"User: {task.user}",
                *(
                    f"Call: {name}({json.dumps(arguments)})\nResult: {result}"
                    for (name, arguments), result in task.steps
                ),
                f"Assistant: {task.answer}",
            )
        )
        language = languages[i % len(languages)]
        asked, told, note = (
            talk.sentences(r, which, count, held_out=held_out)
            for which, count in ((language, 2), (language, 5), ("en", 2))
        )
        yield f"User: {asked}\nAssistant: {told}"
        kind = programs[i % len(programs)]
        yield f"```{kind}\n{talk.program(r, kind, held_out=held_out)}```\n{note}"


def mixed(files: list[str], other: list[str]) -> str:
    """Spread the blocks of files evenly between the drawn ones."""
    places = [((i + 0.5) / len(files), text) for i, text in enumerate(files)]
    places += [((i + 0.5) / len(other), text) for i, text in enumerate(other)]
    return "\n\n".join(text.strip("\n") for _, text in sorted(places, key=lambda p: p[0])) + "\n"


def main() -> None:
    TO.mkdir(exist_ok=True)
    for name, patterns in FILES.items():
        text = mixed(own_files(patterns), list(drawn(*DRAWN[name])))
        (TO / f"{name}.txt").write_text(text)
        print(f"{name}: {len(text.encode()):,} bytes")


if __name__ == "__main__":
    main()
