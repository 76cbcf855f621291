"""Mixtures of experts: one GGUF tensor holds the matrices of all experts of a layer.

Checkpoints store them one by one (as published) or stacked, gate and up in one tensor (as newer
versions of transformers may save them); both are read in place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from edgekit_quantize.architectures.base import (
    Config,
    Part,
    RecipeParams,
    TensorSource,
    TensorSpec,
    bad_config,
    flag,
    integer,
    plain,
    quantize_order,
)
from edgekit_quantize.architectures.dense import DenseArchitecture, read_shape
from edgekit_quantize.architectures.matching import (
    has_output,
    language_part,
    match,
    missing_tensors,
    text_config,
)
from edgekit_quantize.architectures.views import Take
from edgekit_quantize.metadata import KeyValue, u32

MAX_EXPERTS = 1024
"""llama.cpp's LLAMA_MAX_EXPERTS."""

_FEED_FORWARD = (".ffn_gate.", ".ffn_up.", ".ffn_down.")


@dataclass(frozen=True, slots=True)
class Experts:
    """How many experts a layer has, how many answer a token, and their feed-forward width."""

    count: int
    used: int
    ffn: int


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """What a family calls a layer's experts: one by one with `{}` for the number, and stacked."""

    router: str
    each: str
    stacked: str
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    stacked_router: str | None = None


def read_experts(config: Config, ffn: str, *counts: str) -> Experts:
    """Read and check the numbers. Raises BadCheckpointError (code `bad_config`).

    `ffn` and `counts` are the family's keys. One expert alone is what llama.cpp calls dense.
    """
    found = Experts(
        count=integer(config, *counts, least=2),
        used=integer(config, "num_experts_per_tok"),
        ffn=integer(config, ffn),
    )
    if found.count > MAX_EXPERTS:
        raise bad_config(
            f"config.json: {found.count} experts, llama.cpp takes at most {MAX_EXPERTS}"
        )
    if found.used > found.count:
        raise bad_config(f"config.json: {found.used} of {found.count} experts answer a token")
    return found


def expert_sources(
    layers: Sequence[int],
    hidden: int,
    experts: Experts,
    names: ExpertNames,
    stored: Collection[str],
) -> list[TensorSource]:
    """Return the routers and stacked experts of `layers`, by the form in which `stored` has them.

    Without `stored` (planning from a config alone) the form does not matter. Raises
    BadCheckpointError (code `missing_tensor`) early where a config asks for far too many.
    """
    needed = 3 * experts.count * len(layers)
    stacked = any(name.endswith(f".{names.stacked}.down_proj") for name in stored)
    if stored and not stacked and needed > 2 * len(stored):
        raise missing_tensors(
            f"config.json asks for {needed} tensors of experts, the checkpoint has {len(stored)} "
            "tensors in all"
        )
    found = []
    for layer in layers:
        found.extend(_layer(layer, hidden, experts, names, stored))
    return found


def _layer(
    layer: int, hidden: int, experts: Experts, names: ExpertNames, stored: Collection[str]
) -> list[TensorSource]:
    block, prefix = f"blk.{layer}", f"model.layers.{layer}"
    one = f"{prefix}.{names.each.format(0)}.{names.down}.weight"
    each = one in stored or (bool(stored) and f"{prefix}.{names.stacked}.down_proj" not in stored)
    router = names.router if each or names.stacked_router is None else names.stacked_router
    found = [
        plain(f"{block}.ffn_gate_inp.weight", (hidden, experts.count), f"{prefix}.{router}.weight")
    ]
    halves = {
        "gate": Part(f"{prefix}.{names.stacked}.gate_up_proj", (Take(1, 0, experts.ffn),)),
        "up": Part(
            f"{prefix}.{names.stacked}.gate_up_proj", (Take(1, experts.ffn, 2 * experts.ffn),)
        ),
        "down": Part(f"{prefix}.{names.stacked}.down_proj"),
    }
    for ours, theirs in (("gate", names.gate), ("up", names.up), ("down", names.down)):
        rows, columns = (hidden, experts.ffn) if ours == "down" else (experts.ffn, hidden)
        spec = TensorSpec(f"{block}.ffn_{ours}_exps.weight", (columns, rows, experts.count))
        parts: tuple[Part, ...] = (halves[ours],)
        if each:
            numbered = (names.each.format(i) for i in range(experts.count))
            parts = tuple(Part(f"{prefix}.{one}.{theirs}.weight") for one in numbered)
        found.append(TensorSource(spec, parts))
    return found


def gated(layer: int, ending: str, prefix: str, hidden: int, ffn: int) -> list[TensorSource]:
    """Return a dense feed-forward part: `ending` is "" or "_shexp" for shared experts."""
    block = f"blk.{layer}"
    return [
        plain(f"{block}.ffn_gate{ending}.weight", (hidden, ffn), f"{prefix}.gate_proj.weight"),
        plain(f"{block}.ffn_up{ending}.weight", (hidden, ffn), f"{prefix}.up_proj.weight"),
        plain(f"{block}.ffn_down{ending}.weight", (ffn, hidden), f"{prefix}.down_proj.weight"),
    ]


def without_feed_forward(sources: Iterable[TensorSource]) -> list[TensorSource]:
    """Return a dense model's tensors without its feed-forward matrices."""
    return [s for s in sources if not any(part in s.spec.name for part in _FEED_FORWARD)]


def in_order(sources: Iterable[TensorSource]) -> list[TensorSource]:
    """Return `sources` in the order llama-quantize visits and writes them."""
    return sorted(sources, key=lambda source: quantize_order(source.spec.name))


def with_expert_keys(
    arch: str, keys: Sequence[KeyValue], added: Sequence[KeyValue]
) -> list[KeyValue]:
    """Return a dense model's keys with `added` where llama.cpp's converter writes them."""
    after = f"{arch}.attention.layer_norm_rms_epsilon"
    at = next(i for i, entry in enumerate(keys) if entry.key == after) + 1
    return [*keys[:at], *added, *keys[at:]]


@dataclass(frozen=True, slots=True)
class MoeArchitecture:
    """A dense family whose every layer has experts behind a router, and no shared ones.

    `ffn_key` and `count_keys` name the experts' width and number in the config. `width_key`:
    the width is written to the GGUF as a key of its own. `normalised`: llama.cpp's graph makes
    the weights of the chosen experts add up to one, and the config must ask for it.
    """

    dense: DenseArchitecture
    names: ExpertNames
    ffn_key: str
    count_keys: tuple[str, ...]
    width_key: bool
    normalised: bool = False

    @property
    def name(self) -> str:
        return self.dense.name

    def tensors(self, config: Config) -> list[TensorSpec]:
        """Return the GGUF's tensors in the order llama-quantize visits and writes them."""
        tied = flag(config, "tie_word_embeddings", False)
        return [source.spec for source in self._all(config, (), output=not tied)]

    def sources(self, config: Config, stored: Iterable[str]) -> list[TensorSource]:
        """Match the checkpoint's names with the model's; see `Architecture.sources`."""
        names = language_part(stored, wrapped=self.dense.wrapped).of
        return match(self._all(config, names, output=has_output(config, names)), names)

    def recipe_params(self, config: Config) -> RecipeParams:
        experts = self._experts(config)
        return replace(self.dense.recipe_params(config), n_expert=experts.count)

    def metadata(self, config: Config) -> list[KeyValue]:
        """Return the `{arch}.*` keys in the order of llama.cpp's converter."""
        arch, experts = self.name, self._experts(config)
        added = [
            u32(f"{arch}.expert_count", experts.count),
            u32(f"{arch}.expert_used_count", experts.used),
        ]
        keys = with_expert_keys(arch, self.dense.metadata(config), added)
        if self.width_key:
            keys.append(u32(f"{arch}.expert_feed_forward_length", experts.ffn))
        return keys

    def notes(self, config: Config, stored: Iterable[str]) -> list[str]:
        return self.dense.notes(config, stored)

    def _experts(self, config: Config) -> Experts:
        text = text_config(config) if self.dense.wrapped else config
        found = read_experts(text, self.ffn_key, *self.count_keys)
        if self.normalised and not flag(text, "norm_topk_prob", False):
            raise bad_config(
                f"config.json: norm_topk_prob is not set, and llama.cpp's {self.name} always "
                "makes the chosen experts' weights add up to one"
            )
        dense_layers = text.get("mlp_only_layers")
        if integer(text, "decoder_sparse_step", default=1) != 1 or dense_layers not in (None, []):
            raise bad_config(
                "config.json: decoder_sparse_step and mlp_only_layers put dense layers between; "
                f"llama.cpp's {self.name} has experts in every layer"
            )
        return found

    def _all(self, config: Config, stored: Collection[str], *, output: bool) -> list[TensorSource]:
        experts, shape = self._experts(config), read_shape(config, self.dense.activation)
        found = without_feed_forward(self.dense.unmatched(config, output=output))
        layers = range(shape.n_layer)
        found.extend(expert_sources(layers, shape.hidden, experts, self.names, stored))
        return in_order(found)
