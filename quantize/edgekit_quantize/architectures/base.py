"""What the converter must know about a family of models, and how to read its config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from edgekit_quantize.architectures.views import View
from edgekit_quantize.errors import BadCheckpointError
from edgekit_quantize.metadata import KeyValue

Config = Mapping[str, object]
"""A Hugging Face `config.json`, parsed."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of the GGUF: its name, and its shape in ggml order (row length first).

    `native` is the block type that the checkpoint already stores it in and that no recipe
    changes (gpt-oss's MXFP4 experts), None for plain floats.
    """

    name: str
    shape: tuple[int, ...]
    native: str | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A stored tensor of the checkpoint and how it is looked at: see `views`."""

    source: str
    view: View = ()


@dataclass(frozen=True, slots=True)
class TensorSource:
    """Where a GGUF tensor comes from: its parts one after another along the rows.

    `values` holds a tensor that no checkpoint stores and that the config decides (`parts` is
    then empty). `add` is added to each value of a float tensor.
    """

    spec: TensorSpec
    parts: tuple[Part, ...] = ()
    values: tuple[float, ...] | None = None
    add: float = 0.0


@dataclass(frozen=True, slots=True)
class RecipeParams:
    """The few numbers llama-quantize's rules look at."""

    arch: str
    n_layer: int
    n_head: int
    n_head_kv: int
    n_expert: int = 0


class Architecture(Protocol):
    """One family. Everything is a pure function of the config."""

    @property
    def name(self) -> str:
        """`general.architecture`."""

    def tensors(self, config: Config) -> list[TensorSpec]:
        """Return the GGUF's tensors in the order llama-quantize visits and writes them."""

    def sources(self, config: Config, stored: Iterable[str]) -> list[TensorSource]:
        """Return where each tensor comes from, for a checkpoint that stores `stored`.

        Raises BadCheckpointError when names are missing or not known.
        """

    def recipe_params(self, config: Config) -> RecipeParams: ...

    def metadata(self, config: Config) -> list[KeyValue]:
        """Return the `{arch}.*` keys in the order of llama.cpp's converter."""

    def notes(self, config: Config, stored: Iterable[str]) -> list[str]:
        """Say in plain words what of the checkpoint is left out, such as a vision tower."""


def plain(name: str, shape: tuple[int, ...], source: str, view: View = ()) -> TensorSource:
    """Return the GGUF tensor `name` made from one stored tensor."""
    return TensorSource(TensorSpec(name, shape), (Part(source, view),))


@lru_cache(maxsize=1 << 15)
def quantize_order(name: str) -> tuple[int, bytes]:
    """Sort key of llama.cpp's tensor map: outside blocks first, then by block, then by name."""
    block = -1
    if name.startswith("blk."):
        number = name[4:].split(".", 1)[0]
        if number.isdecimal():
            block = int(number)
    return block, name.encode()


def integer(config: Config, *keys: str, default: int | None = None, least: int = 1) -> int:
    """Return the first of `keys` that the config sets, as an integer of at least `least`.

    Raises BadCheckpointError (code `bad_config`) when it is absent without a default, or no
    whole number in range. The upper bound is what a GGUF u32 holds.
    """
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
            raise bad_config(
                f"config.json: {key} must be a whole number >= {least}, is {value!r:.60}"
            )
        return value
    if default is None:
        raise bad_config(f"config.json does not say {keys[0]}")
    return default


def number(config: Config, key: str, default: float | None = None, *, zero: bool = False) -> float:
    """Return `key` as a positive float, or with `zero` as 0 too; raises as `integer` does."""
    value = config.get(key)
    if value is None:
        if default is None:
            raise bad_config(f"config.json does not say {key}")
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise bad_config(f"config.json: {key} must be a number, is {value!r:.60}")
    if not (0 < value < 1e30 or (zero and value == 0)):
        raise bad_config(f"config.json: {key} must be a positive number, is {value!r:.60}")
    return float(value)


def flag(config: Config, key: str, default: bool) -> bool:
    """Return `key` as a boolean; raises as `integer` does."""
    value = config.get(key, default)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise bad_config(f"config.json: {key} must be true or false, is {value!r:.60}")
    return value


def bad_config(message: str) -> BadCheckpointError:
    return BadCheckpointError(
        message, code="bad_config", hint="fetch config.json again from the model's repository"
    )


def listed(names: Sequence[str], limit: int = 4) -> str:
    """Return `names` for an error message, shortened with a count."""
    head = ", ".join(names[:limit])
    return head if len(names) <= limit else f"{head} and {len(names) - limit} more"
