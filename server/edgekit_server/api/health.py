"""Liveness, readiness and figures."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from ..client import State, not_ready
from ..router import Router
from .failures import error_body, error_response

routes = APIRouter()


@routes.head("/livez", include_in_schema=False)
@routes.get("/livez")
async def livez() -> dict[str, str]:
    """The front answers: that is all this says."""
    return {"status": "ok"}


@routes.head("/readyz", include_in_schema=False)
@routes.head("/health", include_in_schema=False)
@routes.get("/readyz")
@routes.get("/health")
async def readyz(request: Request) -> Response:
    """200 when the model is loaded, else 503 with `Loading model`."""
    router: Router = request.app.state.router
    if router.client.state is State.READY:
        return JSONResponse({"status": "ok"})
    if router.client.failure is not None:
        return JSONResponse(error_body(router.client.failure), 503)
    return error_response(not_ready(router.client.state), request.url.path)


@routes.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Prometheus text."""
    client = request.app.state.router.client
    text = request.app.state.metrics.render(
        in_flight=client.in_flight,
        restarts=client.restarts,
        ready=client.state is State.READY,
        pulse=client.pulse,
    )
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")
