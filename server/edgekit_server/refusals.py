"""What the engine refuses, as the errors that the front raises."""

from __future__ import annotations

from .engine import wire
from .errors import (
    BadModelError,
    ConfigError,
    ContextLengthError,
    EngineDiedError,
    ModelMissingError,
    RequestError,
    ServerError,
)
from .suspects import MAX_DEATHS

LOAD_FAILURES: dict[str, type[ServerError]] = {
    "bad_model": BadModelError,
    "out_of_memory": BadModelError,
    "bad_config": ConfigError,
    "model_missing": ModelMissingError,
}
"""What the child says before it exits, and the error of ours that it stands for."""


def rejection(message: wire.Rejected, hello: wire.Hello | None, param: str) -> RequestError:
    """Return the error for a request that the engine did not take."""
    if message.code == "context_length_exceeded" and hello is not None:
        return ContextLengthError(message.n_prompt, hello.n_ctx_seq, param=param)
    if message.code == "queue_full":
        return RequestError(
            message.message,
            status=429,
            type="rate_limit_error",
            code="queue_full",
            retry_after_s=1,
        )
    return RequestError(message.message, code=message.code, param=message.param or param)


def not_answered(message: wire.Rejected, hello: wire.Hello | None, param: str) -> ServerError:
    """Return the error for texts that the engine gave no vectors or tokens for."""
    if message.code == "input_too_long" and hello is not None and hello.vectors is not None:
        return ContextLengthError(message.n_prompt, hello.vectors.n_ctx, param=param)
    if message.code in ("embedding_failed", "out_of_memory", "bad_model"):
        return ServerError(message.message, code=message.code)
    return rejection(message, hello, param)


def kills_engine(param: str) -> RequestError:
    """Return the error for a request that the engine died over again and again."""
    return RequestError(
        f"the engine died {MAX_DEATHS} times or more while this request ran, and no other "
        "can have been the cause; it is refused until the server restarts or an hour has passed",
        code="request_kills_engine",
        param=param,
    )


def load_failure(fatal: wire.Fatal | None, reason: str) -> ServerError:
    """Return the error for an engine that never became ready; `reason`: how it ended."""
    if fatal is not None and fatal.code in LOAD_FAILURES:
        return LOAD_FAILURES[fatal.code](fatal.message, code=fatal.code)
    code = None if fatal is None else fatal.code
    return EngineDiedError(f"the engine died while loading: {reason}", code=code)
