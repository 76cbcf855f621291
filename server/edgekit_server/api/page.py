"""GET /: the page for people, and a word for Ollama's clients.

The page is files of this package, without a build step. Its policy lets it load from this server
and talk to this server, and nothing else.
"""

from __future__ import annotations

import asyncio
import json
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from ..errors import RequestError
from ..paths import PAGE
from . import status as statuses

routes = APIRouter()

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
POLICY = "; ".join(
    (
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'",
        "img-src 'self' data:", "base-uri 'none'", "frame-ancestors 'none'", "form-action 'none'",
    )
)  # fmt: skip
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    # A newer edgekit on the same port must not run with an older one's script.
    "cache-control": "no-cache",
}
OLLAMA = "Ollama is running"


@routes.head("/", include_in_schema=False)
@routes.get("/", include_in_schema=False)
async def root(request: Request) -> Response:
    """Give a browser the page, and anything else the line that Ollama's clients look for."""
    if "text/html" in request.headers.get("accept", "").lower():
        response = _file("index.html")
    else:
        response = PlainTextResponse(OLLAMA, headers={"x-content-type-options": "nosniff"})
    response.headers["vary"] = "Accept"
    return response


@routes.head("/web/{name}", include_in_schema=False)
@routes.get("/web/{name}", include_in_schema=False)
async def asset(name: str) -> Response:
    """Give one of the page's files."""
    if f"/web/{name}" not in PAGE:
        raise RequestError(f"the page has no file {name}", status=404, code="not_found")
    return _file(name)


@routes.get("/status")
async def status(request: Request) -> Response:
    """What runs here and how well; `ttft_ms` and `itl_ms` are of the last ten minutes."""
    state = request.app.state
    found = await asyncio.to_thread(statuses.report_version, state.config.report)
    body = statuses.status(state.router, state.metrics, found)
    return JSONResponse(body, headers={"cache-control": "no-store"})


@routes.get("/status/report")
async def report(request: Request) -> Response:
    """The latency report of the deployment, `edgekit.bench/1`; 404 where there is none."""
    found = await asyncio.to_thread(statuses.read_report, request.app.state.config.report)
    # ASCII: a lone surrogate in a file is no reason to fail.
    body = json.dumps(found).encode()
    return Response(body, headers={"cache-control": "no-store"}, media_type="application/json")


def _file(name: str) -> Response:
    kind = TYPES[name[name.rindex(".") :]]
    return Response(_content(name), headers=HEADERS, media_type=f"{kind}; charset=utf-8")


@cache
def _content(name: str) -> bytes:
    return files("edgekit_server").joinpath("web", name).read_bytes()
