"""Which tensor gets which type: llama-quantize's choice, and what a user wants otherwise.

The rules are tables in `recipe_rules`. Counters run in the order `quantize_order` and stand for
the layer; an overridden tensor does not advance them, as in llama-quantize.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from edgekit_quantize import architectures
from edgekit_quantize.architectures import Config, RecipeParams, TensorSpec, quantize_order
from edgekit_quantize.architectures.base import listed
from edgekit_quantize.errors import BadRecipeError
from edgekit_quantize.recipe_rules import (
    BLIND_ABORTS,
    KEPT_NAMES,
    KEPT_PARTS,
    LOW_BITS,
    Place,
    chosen_by_rule,
    fitting,
    needs_importance,
    role,
)
from edgekit_quantize.tensor_types import (
    TENSOR_TYPES,
    FileType,
    TensorType,
    align,
    find_file_type,
    find_tensor_type,
    tensor_bytes,
)


@dataclass(frozen=True, slots=True)
class Overrides:
    """What is wanted other than the rules say, as llama-quantize's options of these names.

    `tensors` are pairs of a regular expression, searched for in the tensor's name, and a tensor
    type; the first that is found counts. They hold only in block file types, as in
    llama-quantize. `output`, `embedding`: types of the output and token matrices. `pure`: the
    file type's common type for everything else.
    """

    tensors: tuple[tuple[str, str], ...] = ()
    output: str | None = None
    embedding: str | None = None
    pure: bool = False

    def __bool__(self) -> bool:
        return bool(self.tensors or self.output or self.embedding or self.pure)


@dataclass(frozen=True, slots=True)
class Choice:
    """One tensor's type; `reason` says why it is not what the rules give, None where it is."""

    type: TensorType
    reason: str | None = None


NO_OVERRIDES = Overrides()


def stored_type(tensor: TensorSpec) -> TensorType:
    """Return the type a BF16 GGUF holds the tensor in: vectors and norms F32, matrices BF16."""
    if tensor.native is not None:
        return TENSOR_TYPES[tensor.native]
    if (
        len(tensor.shape) < 2
        or not tensor.name.endswith(".weight")
        or tensor.name.endswith(("_norm.weight", "ffn_gate_inp.weight"))
    ):
        return TENSOR_TYPES["F32"]
    return TENSOR_TYPES["BF16"]


_KEPT: Final = re.compile("|".join(map(re.escape, KEPT_PARTS)))


def quantizable(tensor: TensorSpec) -> bool:
    """Say whether llama-quantize may change the tensor's type."""
    if not any(size > 1 for size in tensor.shape[1:]) or not tensor.name.endswith("weight"):
        return False
    return tensor.name not in KEPT_NAMES and _KEPT.search(tensor.name) is None


def assign(
    tensors: Sequence[TensorSpec],
    filetype: str,
    hparams: RecipeParams,
    *,
    imatrix: bool = False,
    overrides: Overrides = NO_OVERRIDES,
) -> list[TensorType]:
    """Return the type of each tensor, aligned with `tensors`; see `choose`."""
    chosen = choose(tensors, filetype, hparams, imatrix=imatrix, overrides=overrides)
    return [choice.type for choice in chosen]


def choose(
    tensors: Sequence[TensorSpec],
    filetype: str,
    hparams: RecipeParams,
    *,
    imatrix: bool = False,
    overrides: Overrides = NO_OVERRIDES,
) -> list[Choice]:
    """Return what llama-quantize chooses for each tensor, aligned with `tensors`.

    `imatrix`: whether there is an importance matrix; some rules look at it. The input's order
    does not matter: the rules run in llama-quantize's own order. Raises UnknownFileTypeError,
    BadRecipeError (`bad_pattern`, `no_smaller_type`, `row_not_blocks`, `native_type`).
    """
    state = _State(find_file_type(filetype), hparams, tensors, imatrix, overrides)
    order = sorted(range(len(tensors)), key=lambda i: quantize_order(tensors[i].name))
    choices = [Choice(TENSOR_TYPES["F32"])] * len(tensors)
    for i in order:
        choices[i] = state.choose(tensors[i])
    return choices


def weights_bytes(
    config: Config,
    filetype: str,
    *,
    imatrix: bool = False,
    overrides: Overrides = NO_OVERRIDES,
) -> int:
    """Return the bytes of the GGUF's data section for a model known by its config.json alone.

    Every tensor starts at a multiple of 32, as in the file; the header is not counted. Raises
    BadCheckpointError for a config that makes no sense, and what `choose` raises.
    """
    architecture = architectures.for_config(config)
    tensors = architecture.tensors(config)
    params = architecture.recipe_params(config)
    types = assign(tensors, filetype, params, imatrix=imatrix, overrides=overrides)
    return sum(
        align(tensor_bytes(kind, tensor.shape)) for tensor, kind in zip(tensors, types, strict=True)
    )


def type_reasons(
    tensors: Sequence[TensorSpec], choices: Sequence[Choice], file_type: FileType
) -> Iterator[str]:
    """Say in plain words what mix of types a file has, and which tensors deviate and why."""
    counts: dict[str, int] = {}
    deviating: dict[str, list[str]] = {}
    for tensor, choice in zip(tensors, choices, strict=True):
        counts[choice.type.name] = counts.get(choice.type.name, 0) + 1
        if choice.reason is not None:
            deviating.setdefault(choice.reason, []).append(tensor.name)
    mix = ", ".join(f"{counts[kind]} {kind}" for kind in sorted(counts))
    yield f"{file_type.name} by llama-quantize's rules: {mix}"
    for reason, names in deviating.items():
        yield f"{listed(names)}: {reason}"


def without_importance(
    tensors: Iterable[tuple[str, TensorType]], filetype: str, known: Iterable[str] = ()
) -> list[str]:
    """Return the names among (name, type) that need an importance and are not in `known`."""
    there = frozenset(known)
    return [
        name
        for name, kind in tensors
        if (needs_importance(name, kind.name, filetype) or kind.name in BLIND_ABORTS)
        and name not in there
    ]


class _State:
    """The counters of each role, and the choice for one tensor after another."""

    def __init__(
        self,
        file_type: FileType,
        hparams: RecipeParams,
        tensors: Sequence[TensorSpec],
        imatrix: bool,
        overrides: Overrides,
    ) -> None:
        roles = [role(tensor.name) for tensor in tensors]
        self.file_type, self.hparams, self.imatrix = file_type, hparams, imatrix
        self.tied = "output" not in roles
        self.n_attn_v = roles.count("attn_v")
        self.seen = dict.fromkeys(roles, 0)
        self.pure = overrides.pure
        self.patterns = [(_compiled(p), find_tensor_type(t)) for p, t in overrides.tensors]
        self.output = find_tensor_type(overrides.output) if overrides.output else None
        self.embedding = find_tensor_type(overrides.embedding) if overrides.embedding else None

    def choose(self, tensor: TensorSpec) -> Choice:
        if not quantizable(tensor):
            return Choice(stored_type(tensor))
        wanted = self._wanted(tensor)
        if tensor.native is not None:
            return self._native(tensor, wanted)
        if wanted is None:
            return Choice(self.file_type.default)
        kind, reason, exact = wanted
        fits = kind.name if exact else fitting(kind.name, tensor.shape[0])
        if fits is None or (exact and tensor.shape[0] % kind.block):
            raise _misfit(tensor, kind, exact)
        if fits == kind.name:
            return Choice(kind, reason)
        return Choice(
            TENSOR_TYPES[fits],
            f"{fits} instead of {kind.name}: rows of {tensor.shape[0]} are no whole blocks of "
            f"{kind.block}",
        )

    def _wanted(self, tensor: TensorSpec) -> tuple[TensorType, str | None, bool] | None:
        """Return type, reason, and whether it must be this very type; None: the plain default."""
        named, default = role(tensor.name), self.file_type.default
        found = next((kind for p, kind in self.patterns if p.search(tensor.name)), None)
        by_name = found is not None and tensor.name == "per_layer_token_embd.weight"
        if self.embedding is not None and named == "embedding" and not by_name:
            return self.embedding, f"{self.embedding.name} as asked for token embeddings", True
        if self.output is not None and named == "output":
            return self.output, f"{self.output.name} as asked for the output matrix", True
        if not default.quantized:
            return None
        if found is not None:
            return found, f"{found.name} as asked by pattern", False
        if self.pure:
            return default, None, False
        if self.tied and named == "embedding":
            if self.output is not None:
                return self.output, f"{self.output.name} as asked for the output matrix", False
            named = "output"
        return TENSOR_TYPES[self._by_rule(tensor, named)], None, False

    def _by_rule(self, tensor: TensorSpec, named: str) -> str:
        label, default = self.file_type.name, self.file_type.default
        if label == "MXFP4_MOE":
            experts = len(tensor.shape) > 2 and tensor.shape[2] > 1
            return "MXFP4" if experts and named != "output" else "Q8_0"
        if named == "output" and tensor.shape[0] % default.block:
            return "Q8_0"
        i = self.seen.get(named, 0)
        self.seen[named] = i + 1
        hparams = self.hparams
        if named.startswith("ffn_") and hparams.n_expert > 1 and label not in LOW_BITS:
            i = quantize_order(tensor.name)[0]
        place = Place(
            i=i,
            n=self.n_attn_v if named == "attn_v" else hparams.n_layer,
            grouped=hparams.n_head // hparams.n_head_kv >= 4,
            n_expert=hparams.n_expert,
            imatrix=self.imatrix,
            big=_is_70b(hparams),
        )
        return chosen_by_rule(named, label, default.name, place)[0]

    def _native(
        self, tensor: TensorSpec, wanted: tuple[TensorType, str | None, bool] | None
    ) -> Choice:
        kind = TENSOR_TYPES[str(tensor.native)]
        if wanted is not None and wanted[1] is not None and wanted[0] is not kind:
            raise BadRecipeError(
                f"{tensor.name} is {kind.name} in the checkpoint and cannot become "
                f"{wanted[0].name}",
                code="native_type",
                hint="narrow the pattern so that it leaves this tensor out",
            )
        return Choice(kind, f"{kind.name} as in the checkpoint")


def _is_70b(hparams: RecipeParams) -> bool:
    """llama.cpp's LLM_TYPE_70B: 80 layers, and for `llama` fewer key-value heads than heads."""
    if hparams.n_layer != 80 or hparams.arch not in ("llama", "qwen2"):
        return False
    return hparams.arch == "qwen2" or hparams.n_head != hparams.n_head_kv


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    """Compile a pattern; the case does not matter, as on llama-quantize's command line."""
    try:
        return re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise BadRecipeError(
            f"{pattern!r} is no regular expression: {error}",
            code="bad_pattern",
            hint=r"for example: 'blk\.[0-3]\.ffn_down=Q6_K'",
        ) from error


def _misfit(tensor: TensorSpec, kind: TensorType, exact: bool) -> BadRecipeError:
    columns = f"rows of {tensor.shape[0]} are no whole {kind.name} blocks of {kind.block}"
    if exact:
        return BadRecipeError(
            f"{tensor.name} cannot be {kind.name}: {columns}",
            code="row_not_blocks",
            hint="choose a type with blocks of 32, such as Q8_0",
        )
    return BadRecipeError(
        f"{tensor.name} cannot be {kind.name}: {columns}, and llama.cpp has no smaller relative",
        code="no_smaller_type",
        hint="choose another file type, such as Q2_K",
    )
