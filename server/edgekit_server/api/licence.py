"""GET /licence: what the models' licences ask, and their texts, for people or for programs."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from starlette.responses import JSONResponse, Response

from ..router import Router

routes = APIRouter()

LINE = "=" * 78
HEADERS = {"x-content-type-options": "nosniff", "vary": "Accept"}
UNKNOWN = "nobody told this server what licence the model comes under"


@routes.get("/licence", response_class=PlainTextResponse)
async def licence(request: Request) -> Response:
    """Give each model's notice as text, or as JSON to those who ask for that."""
    router: Router = request.app.state.router
    found = [(served.id, served.config.notice) for served in router.served]
    if "application/json" in request.headers.get("accept", "").lower():
        data = [
            {
                "model": name,
                "licence": notice and notice.licence,
                "shown": notice and notice.shown,
                "text": notice and notice.text,
            }
            for name, notice in found
        ]
        return JSONResponse({"object": "list", "data": data}, headers=HEADERS)
    parts = []
    for name, notice in found:
        shown = f"\n{notice.shown}\n" if notice and notice.shown else ""
        parts.append(f"{LINE}\n{name}\n{LINE}\n{shown}\n{notice.text if notice else UNKNOWN}\n")
    return PlainTextResponse("\n".join(parts), headers=HEADERS)
