"""Mistral Small 3.1 and 3.2, Devstral Small 2, Ministral 3: GGUF architecture `mistral3`.

llama.cpp loads their older files as `llama`; its converter now writes `mistral3`, whose graph is
Llama's with YaRN's log multiplier and Llama 4's attention temperature. So do we, always.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgekit_quantize.architectures.base import (
    Config,
    RecipeParams,
    TensorSource,
    TensorSpec,
    bad_config,
)
from edgekit_quantize.architectures.dense import DenseArchitecture
from edgekit_quantize.architectures.matching import text_config
from edgekit_quantize.errors import BadCheckpointError
from edgekit_quantize.metadata import KeyValue

CLASSES = ("Mistral3ForConditionalGeneration", "Ministral3ForCausalLM")
MODEL_TYPES = ("mistral3", "ministral3")

_TEXT_TYPES = ("mistral", "ministral3", "mistral3", None)

_DENSE = DenseArchitecture(
    name="mistral3",
    permuted=True,
    qkv_bias=None,
    head_dim_keys=True,
    vocab_keys=True,
    wrapped=True,
    yarn_log=True,
)


@dataclass(frozen=True, slots=True)
class Mistral3:
    """The dense text part. Mistral Small 4 comes under the same class name and is another model."""

    name: str = "mistral3"

    def tensors(self, config: Config) -> list[TensorSpec]:
        return _DENSE.tensors(_checked(config))

    def sources(self, config: Config, stored: Iterable[str]) -> list[TensorSource]:
        return _DENSE.sources(_checked(config), stored)

    def recipe_params(self, config: Config) -> RecipeParams:
        return _DENSE.recipe_params(_checked(config))

    def metadata(self, config: Config) -> list[KeyValue]:
        return _DENSE.metadata(_checked(config))

    def notes(self, config: Config, stored: Iterable[str]) -> list[str]:
        return _DENSE.notes(_checked(config), stored)


def _checked(config: Config) -> Config:
    text = text_config(config)
    kind = text.get("model_type")
    if kind not in _TEXT_TYPES:
        raise BadCheckpointError(
            f"the text part is of the type {kind!r:.60}, which edgekit does not convert",
            code="unknown_architecture",
            hint="Mistral Small 3.1 and 3.2, Devstral Small 2 and Ministral 3 convert; Mistral "
            "Small 4 (a mixture of experts with latent attention) does not yet",
        )
    if kind == "ministral3" and not (text.get("rope_parameters") or text.get("rope_scaling")):
        # The class would fall back to YaRN's numbers of another model.
        raise bad_config("config.json does not say rope_parameters")
    return config


MISTRAL3 = Mistral3()
