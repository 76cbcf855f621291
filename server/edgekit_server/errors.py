"""Every failure the server reports.

ServerError
├── ConfigError             78   a setting is wrong; the server does not start
├── PortInUseError          75   the address is taken
├── ModelMissingError       66   the GGUF is not there
├── BadModelError           65   the GGUF cannot be loaded
├── EngineDiedError         70   the engine child died; a stream in flight ends with this
├── WireError               70   bytes between front and engine that are no message of ours
└── RequestError            --   a client's mistake: HTTP status, OpenAI type and code
    ├── ContextLengthError  400  context_length_exceeded
    ├── GrammarError        400  invalid_grammar: a schema or grammar that cannot be held
    └── ...
"""

from __future__ import annotations

from typing import ClassVar


class ServerError(Exception):
    """Base of the tree: message, stable code, hint, exit code."""

    exit_code: ClassVar[int] = 70
    code: str = "server_error"
    hint: str | None = None

    def __init__(self, message: str, *, code: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        if hint is not None:
            self.hint = hint


class ConfigError(ServerError):
    exit_code = 78
    code = "bad_config"


class PortInUseError(ServerError):
    exit_code = 75
    code = "port_in_use"


class ModelMissingError(ServerError):
    exit_code = 66
    code = "model_missing"


class BadModelError(ServerError):
    exit_code = 65
    code = "bad_model"


class EngineDiedError(ServerError):
    exit_code = 70
    code = "engine_died"


class WireError(ServerError):
    exit_code = 70
    code = "wire_error"


class RequestError(ServerError):
    """A request that cannot be served, with what the client needs to know."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message, code=code or type)
        self.status = status
        self.type = type
        self.param = param
        self.retry_after_s = retry_after_s


class ContextLengthError(RequestError):
    """The prompt does not fit the context of one sequence (wording fixed by real clients)."""

    def __init__(self, n_prompt: int, n_ctx_seq: int, *, param: str = "messages") -> None:
        super().__init__(
            f"This model's maximum context length is {n_ctx_seq} tokens. However, your "
            f"{param} resulted in {n_prompt} tokens. Please reduce the length of the {param}.",
            code="context_length_exceeded",
            param=param,
        )
        self.n_prompt = n_prompt
        self.n_ctx_seq = n_ctx_seq


class GrammarError(RequestError):
    """What the answer shall match cannot be compiled; `param` names the field if it is known."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message, code="invalid_grammar", param=param)
