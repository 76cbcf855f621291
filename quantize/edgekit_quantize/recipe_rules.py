"""llama-quantize's rules as tables: what is left alone, which role a tensor has, and its type.

The behaviour is that of src/llama-quant.cpp in the llama.cpp that edgekit installs; the tests
compare every model and file type with its dry run. Rules of families that edgekit does not
convert (Falcon, GLM5-next, BailingMoE3) are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from edgekit_quantize.tensor_types import TENSOR_TYPES

_TIME_MIX = ("w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2")

KEPT_PARTS = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    *(
        f"time_mix_{part}.weight"
        for part in ["w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2"]
    ),
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
)
"""Parts of names whose tensors keep their type: norms, routers, tiny or positional matrices."""

KEPT_NAMES = ("position_embd.weight", "token_types.weight")

EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")

_ROLES = (
    ("attn_qkv.weight", "attn_v"),
    ("attn_kv_b.weight", "attn_v"),
    ("attn_v.weight", "attn_v"),
    ("attn_k.weight", "attn_k"),
    ("attn_q.weight", "attn_q"),
    ("attn_output.weight", "attn_output"),
    ("ffn_up", "ffn_up"),
    ("ffn_gate", "ffn_gate"),
    ("ffn_down", "ffn_down"),
)
"""Part of a name -> role; the first that is found. Fused Q, K, V and MLA's kv_b count as V."""


@lru_cache(maxsize=1 << 15)
def role(name: str) -> str:
    """Return the role that the rules see in a tensor's name."""
    if name == "output.weight":
        return "output"
    if name in EMBEDDINGS:
        return "embedding"
    return next((found for part, found in _ROLES if part in name), "other")


@dataclass(frozen=True, slots=True)
class Place:
    """What a condition may look at: the i-th of n tensors of this role, and the model."""

    i: int
    n: int
    grouped: bool
    n_expert: int
    imatrix: bool
    big: bool


def _more(place: Place) -> bool:
    """All in the first and last eighth, and every third layer between."""
    i, n = place.i, place.n
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


_CONDITIONS: dict[str, Callable[[Place], bool]] = {
    "always": lambda _: True,
    "grouped": lambda place: place.grouped,
    "grouped|4experts": lambda place: place.grouped or place.n_expert >= 4,
    "8experts": lambda place: place.n_expert == 8,
    "imatrix&eighth": lambda place: place.imatrix and place.i < place.n // 8,
    "plain": lambda place: not place.imatrix,
    "plain&eighth": lambda place: not place.imatrix and place.i < place.n // 8,
    "eighth": lambda place: place.i < place.n // 8,
    "sixteenth": lambda place: place.i < place.n // 16,
    "middle": lambda place: place.n // 8 <= place.i < 7 * place.n // 8,
    "more": _more,
    "8experts&more": lambda place: place.n_expert == 8 and _more(place),
    "first2": lambda place: place.i < 2,
    "first4": lambda place: place.i < 4,
}

LOW_BITS = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M")
"""File types with rules of their own; for them layers are counted and not read off the name."""

_RULES = """
output       MXFP4_MOE                  always            Q8_0
output       <=2 IQ3_XXS                always            Q5_K
output       Q8_0                       always            Q8_0
output       *                          always            Q6_K

embedding    IQ1_S IQ1_M IQ2_XXS IQ2_XS always            Q2_K
embedding    IQ2_S IQ2_M IQ3_XXS        always            IQ3_S
embedding    TQ1_0 TQ2_0 Q2_0           always            Q4_K

attn_v       <=2                        grouped|4experts  Q4_K
attn_v       IQ2_S IQ2_M                always            IQ3_S
attn_v       <=2                        always            Q2_K
attn_v       *                          8experts          Q8_0
attn_v       Q2_K                       grouped           Q4_K
attn_v       Q2_K                       always            Q3_K
attn_v       Q2_K_S IQ3_XS IQ3_S        grouped           Q4_K
attn_v       IQ3_XXS                    grouped           Q4_K
attn_v       IQ3_XXS                    plain             IQ3_S
attn_v       IQ3_M                      always            Q4_K
attn_v       Q3_K_M                     first2            Q5_K
attn_v       Q3_K_M                     always            Q4_K
attn_v       Q3_K_L                     always            Q5_K
attn_v       IQ4_NL IQ4_XS              grouped           Q5_K
attn_v       Q4_K_M Q5_K_M              more              Q6_K
attn_v       Q4_K_S                     first4            Q5_K

attn_k       <=2                        8experts          Q4_K
attn_k       *                          8experts          Q8_0
attn_k       IQ3_XS                     always            IQ3_XXS
attn_k       IQ3_XXS                    always            IQ2_S

attn_q       IQ3_XS                     always            IQ3_XXS
attn_q       IQ3_XXS                    always            IQ2_S

attn_output  <=2                        8experts          Q5_K
attn_output  IQ1_S IQ1_M                always            IQ2_XXS
attn_output  IQ2_S IQ2_M                always            IQ3_S
attn_output  Q2_K Q3_K_S Q3_K_M Q4_K_S Q4_K_M IQ3_XXS IQ3_XS IQ3_S IQ3_M IQ4_NL IQ4_XS 8experts Q5_K
attn_output  *                          8experts          -
attn_output  Q2_K                       always            Q3_K
attn_output  IQ3_XXS                    always            IQ3_S
attn_output  Q3_K_M IQ3_M               always            Q4_K
attn_output  Q3_K_L                     always            Q5_K

ffn_down     IQ2_S IQ2_M                eighth            IQ3_S
ffn_down     <=2                        eighth            Q2_K
ffn_down     Q2_K                       always            Q3_K
ffn_down     Q2_K_S                     eighth            Q4_K
ffn_down     IQ3_XXS                    plain&eighth      Q4_K
ffn_down     IQ3_XXS                    plain             Q3_K
ffn_down     Q3_K_M                     sixteenth         Q5_K
ffn_down     Q3_K_M                     always            Q4_K
ffn_down     IQ3_M                      eighth            Q4_K
ffn_down     IQ3_M                      8experts&more     Q4_K
ffn_down     Q3_K_L                     always            Q5_K
ffn_down     Q4_K_M Q5_K_M              more              Q6_K
ffn_down     Q4_K_S                     eighth            Q5_K
ffn_down     IQ4_NL IQ4_XS              plain&eighth      Q5_K
ffn_down     Q4_0                       imatrix&eighth    Q4_1
ffn_down     Q5_0                       imatrix&eighth    Q5_1

ffn_gate     IQ3_XS                     middle            IQ3_XXS
ffn_up       IQ3_XS                     middle            IQ3_XXS
"""
"""Role, file types (`*`: all, `<=2`: LOW_BITS), condition, type (`-`: the default). First hit."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the table; `tensor_type` is None for the file type's default."""

    file_types: frozenset[str] | None
    condition: str
    tensor_type: str | None

    def holds(self, file_type: str, place: Place) -> bool:
        known = self.file_types is None or file_type in self.file_types
        return known and _CONDITIONS[self.condition](place)


def _parse_rules() -> dict[str, list[Rule]]:
    table: dict[str, list[Rule]] = {}
    for line in filter(None, _RULES.splitlines()):
        named, *kinds, condition, tensor_type = line.split()
        expanded = [k for kind in kinds for k in (LOW_BITS if kind == "<=2" else (kind,))]
        file_types = None if "*" in expanded else frozenset(expanded)
        chosen = None if tensor_type == "-" else tensor_type
        table.setdefault(named, []).append(Rule(file_types, condition, chosen))
    return table


RULES = _parse_rules()


def chosen_by_rule(named: str, file_type: str, default: str, place: Place) -> tuple[str, str]:
    """Return the type that the tables give a tensor of a role, and the condition that held.

    The condition is "" where no rule applies and the tensor has the file type's default.
    """
    rule = next((rule for rule in RULES.get(named, ()) if rule.holds(file_type, place)), None)
    chosen, why = default, ""
    if rule is not None and rule.tensor_type is not None:
        chosen, why = rule.tensor_type, rule.condition
    if named == "attn_v" and place.big and file_type not in LOW_BITS and chosen in ("Q3_K", "Q4_K"):
        return "Q5_K", "70B"
    return chosen, why


SMALLER = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"), "IQ4_NL"),
    **dict.fromkeys(("IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
"""The type that takes over where rows are no whole blocks; all have blocks of 32."""


def fitting(name: str, columns: int) -> str | None:
    """Return the type `name` or what takes its place for rows of `columns`, at last F16.

    None where llama-quantize knows nothing smaller: Q1_0 and NVFP4.
    """
    kind = TENSOR_TYPES[name]
    if columns % kind.block == 0:
        return name
    if name not in SMALLER and kind.block > 32:
        return None
    smaller = SMALLER.get(name, name)
    return smaller if columns % TENSOR_TYPES[smaller].block == 0 else "F16"


def needs_importance(name: str, tensor_type: str, file_type: str) -> bool:
    """Say whether llama-quantize refuses this tensor without an importance matrix."""
    if name == "output.weight" or name in EMBEDDINGS:
        return False
    if tensor_type == "Q2_K":
        return file_type == "Q2_K_S"
    return tensor_type in ("IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S")


BLIND_ABORTS = ("IQ2_XXS", "IQ2_XS", "IQ1_S")
"""Types whose kernels end the process without an importance, embedding and output included."""
