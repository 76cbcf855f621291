"""Errors as HTTP: OpenAI's shape for everything, 404 and 405 included."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from ..errors import EngineDiedError, RequestError, ServerError
from .body import ClientGoneError

log = logging.getLogger("edgekit_server")

STATUS_CLIENT_GONE = 499


def error_body(error: ServerError) -> dict[str, object]:
    """Return OpenAI's error object."""
    kind, param = "server_error", None
    if isinstance(error, RequestError):
        kind, param = error.type, error.param
    return {"error": {"message": error.message, "type": kind, "param": param, "code": error.code}}


def error_response(error: ServerError) -> JSONResponse:
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
    return JSONResponse(error_body(error), status, headers)


def install(app: FastAPI) -> None:
    """Make every failure of `app` answer in this shape."""

    @app.exception_handler(ServerError)
    async def known(_: Request, error: ServerError) -> Response:
        return error_response(error)

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
        response = error_response(failure)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def unknown(_: Request, error: Exception) -> Response:
        log.error("unexpected failure", exc_info=error)
        return error_response(ServerError("internal error; the server's log has the details"))
