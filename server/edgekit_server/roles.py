"""What a model can do, what it is there for, and which one answers a request that names none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .chat.builtin import completed
from .chat.family import recognise
from .chat.fim import fim_pieces
from .config import ROLES, ModelConfig, ServeConfig
from .engine.wire import Hello
from .errors import ConfigError, RequestError

CAPABILITIES = ("chat", "completion", "fim", "tools", "embeddings", "rerank")


class Candidate(Protocol):
    """A model that may be asked: its settings, and what is known of it, if anything is."""

    config: ModelConfig

    @property
    def hello(self) -> Hello | None: ...


def capabilities(hello: Hello) -> tuple[str, ...]:
    """Return those of CAPABILITIES that a loaded model has."""
    template, _ = completed(hello.chat_template, hello.control_tokens)
    spec, _ = recognise(template)
    templated = hello.generates and template is not None
    pooling = None if hello.vectors is None else hello.vectors.pooling
    has = {
        "chat": templated,
        "completion": hello.generates,
        "fim": hello.generates and _fills_in(hello),
        "tools": templated and bool(spec.forms or spec.channels),
        "embeddings": pooling not in (None, "none", "rank"),
        "rerank": pooling == "rank",
    }
    return tuple(name for name in CAPABILITIES if has[name])


def pick(candidates: Sequence[Candidate], role: str) -> int:
    """Return the number of the model for a request that names none.

    The first one of that role; without such a one, the first one without roles. A model that is
    known to be unable is passed over as long as there is another. `fim` is the role of completion
    with the capability of filling in.
    """
    kind = "completion" if role == "fim" else role
    own = [i for i, c in enumerate(candidates) if kind in c.config.roles]
    among = own or [i for i, c in enumerate(candidates) if not c.config.roles]
    able = [i for i in among if _may(candidates[i].hello, role)]
    return (able or among or [0])[0]


def check_models(config: ServeConfig) -> None:
    """Raise ConfigError for models that cannot be told apart, or can never be loaded together."""
    models = config.served()
    if models[0].engine != config.engine:
        raise ConfigError("the first of the models is not the one of `engine`")
    owners: dict[str, str] = {}
    for model in models:
        model_id = model.engine.model_id
        for name in dict.fromkeys((model_id, *model.aliases)):
            if name in owners:
                raise ConfigError(
                    f"two models answer to the name '{name}'", hint="give each a name of its own"
                )
            owners[name] = model_id
        for role in model.roles:
            if role not in ROLES:
                raise ConfigError(
                    f"{model_id}: '{role}' is no role", hint=f"roles are {', '.join(ROLES)}"
                )
    if config.memory_budget_bytes is not None:
        _check_budget(models, config.memory_budget_bytes)


def _check_budget(models: Sequence[ModelConfig], budget: int) -> None:
    sizes: list[int] = []
    for model in models:
        if model.memory_bytes is None:
            raise ConfigError(
                f"a memory budget needs to know how much {model.engine.model_id} takes",
                hint="give its memory_bytes, or leave the budget out",
            )
        sizes.append(model.memory_bytes)
    pinned = sum(size for m, size in zip(models, sizes, strict=True) if m.pinned)
    at_start = sum(
        size
        for i, (m, size) in enumerate(zip(models, sizes, strict=True))
        if i == 0 or m.pinned or m.preload
    )
    if at_start > budget:
        raise ConfigError(
            f"the models to be loaded at start take {_gib(at_start)}, the budget is {_gib(budget)}",
            hint="preload or pin fewer models, or raise the budget",
        )
    for model, size in zip(models, sizes, strict=True):
        if not model.pinned and pinned + size > budget:
            beside = f" beside the {_gib(pinned)} of pinned models" if pinned else ""
            raise ConfigError(
                f"{model.engine.model_id} takes {_gib(size)}, which the budget of {_gib(budget)} "
                f"never has room for{beside}",
                hint="pin fewer models, or raise the budget",
            )


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / 1024**3:.1f} GiB"


def _may(hello: Hello | None, role: str) -> bool:
    """Whether a model can do it; one that was never loaded may well."""
    return hello is None or role in capabilities(hello)


def _fills_in(hello: Hello) -> bool:
    try:
        fim_pieces("", "", hello.fim)
    except RequestError:
        return False
    return True
