"""The shapes of models that public measurements are made with, found by the names they go under.

Result tables write one model in many ways: `Qwen_Qwen3-8B-Q4_K_M`, `qwen3:8b`,
`hf.co/unsloth/Qwen3-8B-GGUF:Q4_K_M`, or a fine-tune's own name around its base's. `find` undoes
what says nothing about the shape and looks for what is left; it never guesses a shape from a
size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

from edgekit.errors import MissingInputError
from edgekit.facts import Licence, ModelCard
from edgekit.shape import Shape, shape, text_config
from edgekit.tables import Table, load_toml

_BITS: Final = re.compile(
    r"[-_.](?:ud-)?(?:i?q\d[a-z0-9_]*|tq\d_\d|mxfp\d|nvfp4|bf16|f16|f32|fp16|fp8|awq|gptq|gguf|int[48]"
    r"|mlx)$"
)
_USE: Final = re.compile(
    r"-(?:instruct|it|chat|base|pt|thinking|reasoning|reasoning-plus|preview|hf|mtp|qat|latest"
    r"|\d{4})$"
)
_SIZE: Final = re.compile(r"\d[bm](?:$|[-_])")
_ORDER: Final = re.compile(r"^([a-z0-9.\-]+?):(.+)$")

_NOT_READ: Final = Licence(
    name="not in the catalogue", spdx=None, commercial_use=None, acceptance_required=True,
    conditions=None,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class BenchmarkShape:
    """A model's shape under a name of a result table.

    `how` is "named" where the name is one we list, "named after" where it is part of a longer
    name that states its base, "catalogue" where it is a model of the catalogue. `params` is the
    published count, None where there is none; `unsure` says what was inferred.
    """

    id: str
    arch: str
    config: Mapping[str, object]
    params: int | None
    unsure: str | None
    how: Literal["named", "named after", "catalogue"]

    @property
    def shape(self) -> Shape:
        return shape(self.config)

    def card(self) -> ModelCard:
        """A card to plan with; it has no weights to fetch, and nobody read its licence."""
        from edgekit.tensor_list import listed_params

        return ModelCard(
            id=self.id,
            name=self.id,
            aliases=(),
            config=self.config,
            sources=(),
            licence=_NOT_READ,
            params=self.params or listed_params(self.config, self.arch),
            n_ctx_train=self.n_ctx_train,
            tools=None,
            fim=None,
            header_bytes=None,
            notes="A shape for planning; edgekit offers no weights for it.",
            path=_file(),
            gguf_arch=self.arch,
        )

    @property
    def n_ctx_train(self) -> int:
        """As the config says; measurements go to 128k at most, which stands for a silent one."""
        longest = text_config(self.config).get("max_position_embeddings")
        return longest if isinstance(longest, int) else 131_072


def find(name: str) -> BenchmarkShape:
    """The shape of a model by the name that a result table gives it.

    Raises:
        MissingInputError: nothing of that name is known (`shape_unknown`).
    """
    known = _known()
    spellings = _spellings(name)
    for text in spellings:
        if text in known:
            return known[text]
    # Longest first, so that `qwen3.6-35b-a3b-anko` is not taken for a `qwen3.6-35b`.
    for own in sorted(known, key=len, reverse=True):
        inside = rf"(?:^|[-_/]){re.escape(own)}(?=$|[-_:])"
        # A name without a size (`lfm2`) may be part of one with another size.
        if _SIZE.search(own) and any(re.search(inside, text) for text in spellings):
            found = known[own]
            return BenchmarkShape(
                found.id, found.arch, found.config, found.params, found.unsure, "named after"
            )
    raise MissingInputError(
        f"no shape is known for {name!r}",
        code="shape_unknown",
        hint="add it to benchmark_models.toml, or plan from its config.json with --source",
    )


def load() -> dict[str, BenchmarkShape]:
    """All shapes of `benchmark_models.toml` by id. Raises ConfigError."""
    return {s.id: s for s in _listed()[0]}


def _spellings(name: str) -> list[str]:
    """What a name may mean, most literal first: each step drops what says nothing of the shape."""
    text = name.strip().lower().rsplit("/", 1)[-1]
    if (tagged := _ORDER.match(text)) is not None:
        # Ollama's `family:size-more`; a tag that is only a file type says nothing.
        family, tag = tagged.groups()
        family = family.removesuffix("-gguf")
        text = family if _BITS.fullmatch(f"-{tag}") else f"{family}-{tag}"
    found = [text]
    while True:
        shorter = _USE.sub("", _BITS.sub("", found[-1]))
        if shorter == found[-1]:
            break
        found.append(shorter)
    vendorless = [t.split("_", 1)[1] for t in found if "_" in t]
    return [*found, *vendorless]


@cache
def _known() -> dict[str, BenchmarkShape]:
    from edgekit.catalogue import load_models

    known: dict[str, BenchmarkShape] = {}
    for card in load_models().values():
        found = BenchmarkShape(
            card.id, card.gguf_arch or "llama", card.config, None, None, "catalogue"
        )
        repositories = [s.location.rsplit("/", 1)[-1].lower() for s in card.sources]
        for own in (card.id, *card.aliases, *repositories):
            known.setdefault(own, found)
    shapes, names = _listed()
    for entry in shapes:
        for own in (entry.id, *names[entry.id]):
            known[own] = entry
    return known


@cache
def _listed() -> tuple[tuple[BenchmarkShape, ...], dict[str, tuple[str, ...]]]:
    root = load_toml(_file())
    shapes, names = [], {}
    for name in root.keys():  # noqa: SIM118 - a Table is not a dict
        table = root.table(name)
        shapes.append(_read(name, table))
        names[name] = table.texts("names")
        table.done()
    return tuple(shapes), names


def _read(name: str, table: Table) -> BenchmarkShape:
    return BenchmarkShape(
        id=name,
        arch=table.text("arch"),
        config=table.table("config").raw(),
        params=table.maybe_integer("params"),
        unsure=table.maybe_text("unsure"),
        how="named",
    )


def _file() -> Path:
    import edgekit_profiles

    return Path(next(iter(edgekit_profiles.__path__))) / "benchmark_models.toml"
