"""Errors as HTTP, in the shape of the dialect that the path belongs to, 404 and 405 included."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from ..errors import ContextLengthError, EngineDiedError, RequestError, ServerError
from .body import ClientGoneError

log = logging.getLogger("edgekit_server")

STATUS_CLIENT_GONE = 499
_ANTHROPIC = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error",
    504: "timeout_error",
}  # fmt: skip
"""HTTP status to Anthropic's type; anything else is the request's own fault."""


def error_body(error: ServerError) -> dict[str, object]:
    """Return OpenAI's error object."""
    kind, param = "server_error", None
    if isinstance(error, RequestError):
        kind, param = error.type, error.param
    return {"error": {"message": error.message, "type": kind, "param": param, "code": error.code}}


def body_for(path: str, error: ServerError) -> dict[str, object]:
    """Return the error object of the dialect that a canonical path belongs to."""
    if path.startswith("/v1/messages"):
        return anthropic_body(error)
    if path.startswith("/api/"):
        return {"error": error.message}
    return error_body(error)


def anthropic_body(error: ServerError) -> dict[str, object]:
    """Return Anthropic's error object. Claude Code reads both numbers out of the overflow text."""
    kind, message = "api_error", error.message
    if isinstance(error, RequestError):
        kind = _ANTHROPIC.get(error.status, "invalid_request_error")
    if isinstance(error, ContextLengthError):
        message = f"prompt is too long: {error.n_prompt} tokens > {error.n_ctx_seq} maximum"
    if isinstance(error, EngineDiedError):
        kind = "overloaded_error"
    return {"type": "error", "error": {"type": kind, "message": message}}


def error_response(error: ServerError, path: str) -> JSONResponse:
    """Return the response; an engine that died is a 503, since a retry may well succeed."""
    headers = {}
    if isinstance(error, RequestError):
        status = error.status
        if error.retry_after_s is not None:
            headers["retry-after"] = str(error.retry_after_s)
        if status == 401:
            headers["www-authenticate"] = "Bearer"
    elif isinstance(error, EngineDiedError):
        status = 503
        headers["retry-after"] = "1"
    else:
        status = 500
    return JSONResponse(body_for(path, error), status, headers)


def install(app: FastAPI) -> None:
    """Make every failure of `app` answer in this shape."""

    @app.exception_handler(ServerError)
    async def known(request: Request, error: ServerError) -> Response:
        return error_response(error, request.url.path)

    @app.exception_handler(ClientGoneError)
    async def gone(_: Request, __: ClientGoneError) -> Response:
        return Response(status_code=STATUS_CLIENT_GONE)

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> Response:
        path, method = request.url.path, request.method
        if error.status_code == 404:
            message, code = f"{method} {path} does not exist on this server", "not_found"
        elif error.status_code == 405:
            message, code = f"{path} does not take {method}", "method_not_allowed"
        else:
            message, code = str(error.detail), "invalid_request"
        failure = RequestError(message, status=error.status_code, code=code)
        response = error_response(failure, path)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> Response:
        log.error("unexpected failure", exc_info=error)
        failure = ServerError("internal error; the server's log has the details")
        return error_response(failure, request.url.path)
