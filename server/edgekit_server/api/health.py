"""Liveness, readiness and figures."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from ..client import not_ready
from ..router import Router
from ..served import total
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
    """200 when the models of the start are loaded, else 503 with `Loading model`."""
    router: Router = request.app.state.router
    served = router.unready()
    if served is None:
        return JSONResponse({"status": "ok"})
    if served.client.failure is not None:
        return JSONResponse(error_body(served.client.failure), 503)
    return error_response(not_ready(served.client.state), request.url.path)


@routes.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Prometheus text."""
    router: Router = request.app.state.router
    text = request.app.state.metrics.render(
        in_flight=sum(served.client.in_flight for served in router.served),
        restarts=sum(served.restarts for served in router.served),
        ready=router.unready() is None,
        pulse=total(served.pulse for served in router.served),
        models=[served.figures() for served in router.served],
        waiting=router.waiting,
    )
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")
