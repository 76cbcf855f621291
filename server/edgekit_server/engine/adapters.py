"""LoRA adapters: loading, which set of them a request wants, and whose turn it is.

llama.cpp applies adapters to a whole batch. So requests with different sets never share a step;
the sets take turns. Nor do they share memory: a key or value computed with an adapter is wrong
without it.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar

from edgekit_server.config import Adapter
from edgekit_server.engine.log import Log
from edgekit_server.errors import BadModelError, ConfigError, ModelMissingError

AdapterSet = tuple[tuple[int, float], ...]
"""(id, scale), ids ascending, no scale of 0: equal sets compute the same."""
NO_ADAPTERS: AdapterSet = ()


class Wanting(Protocol):
    """A request, as far as it matters here."""

    adapters: AdapterSet


W = TypeVar("W", bound=Wanting)


def resolve(
    asked: Iterable[tuple[int, float]] | None, default: AdapterSet, n_adapters: int
) -> AdapterSet:
    """Return the set that a request runs with. ValueError for an id or a scale that is none."""
    if asked is None:
        return default
    scales: dict[int, float] = {}
    for adapter, scale in asked:
        if not 0 <= adapter < n_adapters:
            raise ValueError(f"adapter {adapter} is none of the {n_adapters} that are loaded")
        if not math.isfinite(scale):
            raise ValueError(f"adapter {adapter}: scale {scale} is no number")
        if adapter in scales:
            raise ValueError(f"adapter {adapter} is named twice")
        scales[adapter] = scale
    return tuple(sorted((adapter, scale) for adapter, scale in scales.items() if scale))


class Rota:
    """Takes the sets in turn: the one that has waited longest goes first."""

    def __init__(self) -> None:
        self._served: dict[AdapterSet, int] = {}
        self._turn = 0

    def pick(self, present: Iterable[AdapterSet]) -> AdapterSet:
        """Return the set of the next step; `present`: those of all that want to run."""
        wanted = list(dict.fromkeys(present))
        self._served = {s: turn for s, turn in self._served.items() if s in wanted}
        chosen = min(wanted, key=lambda s: self._served.get(s, 0))
        self._turn += 1
        self._served[chosen] = self._turn
        return chosen


class Adapters:
    """The adapters of one model, loaded for good."""

    def __init__(self, ll: Any, model: Any, files: Sequence[Adapter], log: Log) -> None:
        """Load. Raises ConfigError, ModelMissingError, or BadModelError with llama.cpp's reason."""
        self._ll = ll
        self.files = tuple(files)
        self._rota = Rota()
        self.pointers: list[Any] = []
        names = [file.name for file in files]
        if len(set(names)) < len(names) or "" in names:
            raise ConfigError(f"adapters need names of their own: {', '.join(names)}")
        try:
            for file in files:
                self.pointers.append(self._load(model, file, log))
        except Exception:
            self.close()
            raise
        scales = [(i, file.scale) for i, file in enumerate(files)]
        try:
            self.default = resolve(scales, NO_ADAPTERS, len(files))
        except ValueError as error:
            self.close()
            raise ConfigError(str(error)) from error

    def _load(self, model: Any, file: Adapter, log: Log) -> Any:
        if not file.path.is_file():
            raise ModelMissingError(f"adapter {file.name}: no file {file.path}")
        pointer = self._ll.llama_adapter_lora_init(model, os.fsencode(file.path))
        if not pointer:
            code = "out_of_memory" if log.says_memory() else "bad_model"
            raise BadModelError(f"adapter {file.name}: {log.reason()}", code=code)
        if self._ll.llama_adapter_get_alora_n_invocation_tokens(pointer):
            self._ll.llama_adapter_lora_free(pointer)
            raise BadModelError(
                f"adapter {file.name} switches itself on in the middle of a text (aLoRA)",
                hint="only plain LoRA adapters can be used",
            )
        return pointer

    def close(self) -> None:
        """Free them; before the model, and after its contexts."""
        while self.pointers:
            self._ll.llama_adapter_lora_free(self.pointers.pop())

    def apply(self, context: Any, chosen: AdapterSet) -> None:
        """Have a native.Context compute with these from its next batch on."""
        n = len(chosen)
        pointers = (ctypes.c_void_p * max(n, 1))()
        scales = (ctypes.c_float * max(n, 1))()
        for at, (adapter, scale) in enumerate(chosen):
            pointers[at] = ctypes.cast(self.pointers[adapter], ctypes.c_void_p).value
            scales[at] = scale
        code = self._ll.llama_set_adapters_lora(
            context.pointer, ctypes.cast(pointers, self._argument), n, scales
        )
        if code != 0:
            raise ValueError(f"llama_set_adapters_lora returned {code}")

    def turn(self, context: Any, wanted: Iterable[W]) -> list[W]:
        """Return those whose turn it is: all with one set, which `context` now computes with."""
        everyone = list(wanted)
        chosen = self._rota.pick(one.adapters for one in everyone)
        self.apply(context, chosen)
        return [one for one in everyone if one.adapters == chosen]

    @property
    def _argument(self) -> Any:
        return self._ll.llama_set_adapters_lora.argtypes[1]
