"""GET /lora-adapters, and the `lora` field of requests."""

from __future__ import annotations

from fastapi import APIRouter, Request

from ..engine.wire import Hello
from ..errors import RequestError
from ..router import Model
from .schema import LoraScale

routes = APIRouter()


@routes.get("/lora-adapters")
async def adapters(request: Request) -> list[dict[str, object]]:
    """List the adapters, each with the scale of a request that names none."""
    model: Model = await request.app.state.router.model(None)
    return [
        {"id": i, "name": adapter.name, "path": adapter.path, "scale": adapter.scale}
        for i, adapter in enumerate(model.hello.adapters)
    ]


def lora_of(given: list[LoraScale] | None, hello: Hello) -> list[tuple[int, float]] | None:
    """Return ids and scales for the engine. RequestError for an adapter that is not loaded."""
    if given is None:
        return None
    names = [adapter.name for adapter in hello.adapters]
    found: dict[int, float] = {}
    for item in given:
        number = names.index(item.name) if item.name in names else item.id
        known = number is not None and number < len(names)
        if not known or (item.name is not None and names[number or 0] != item.name):
            shown = item.name if item.name is not None else item.id
            raise RequestError(
                f"lora: {shown!r} is none of the loaded adapters ({', '.join(names) or 'none'})",
                code="invalid_value",
                param="lora",
            )
        assert number is not None
        if number in found:
            raise RequestError(
                f"lora: {names[number]!r} is named twice", code="invalid_value", param="lora"
            )
        found[number] = item.scale
    return list(found.items())
